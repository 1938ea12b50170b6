"""The scores of a study for each question set, beside the published scores of the same variants."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from zerosearch_jax.evaluate.tables import SCORES


@dataclasses.dataclass(frozen=True)
class Published:
    """Scores of variants that others published, in percent."""

    source: str  # where they were published
    score: str  # the key in SCORES
    sets: tuple[str, ...]
    figures: tuple[tuple[str, tuple[float, ...]], ...]  # (variant, its score for each set)

    def __post_init__(self):
        if self.score not in SCORES:
            raise ValueError(f'score = {self.score!r} is none of {", ".join(SCORES)}')
        for name, each in self.figures:
            if len(each) != len(self.sets):
                raise ValueError(f'{name} has {len(each)} figures; give one for each of the {len(self.sets)} sets')

    def table(self, names: Sequence[str], answers: Mapping[str, Sequence[dict]]) -> str:
        """Markdown: a row for each variant, a column for each set, and averages; cells are measured / published.

        Args:
          names: of all variants, also of those that were not run.
          answers: for each variant that was run, rows with `dataset` and the score.
        """
        title = f'{SCORES[self.score]} in percent, measured / published ({self.source}); each set has the same weight.'
        lines = [title, '', f'| variant | {" | ".join(self.sets)} | average |', f'|---|{"---|" * len(self.sets)}---|']
        for name in names:
            rows = answers.get(name, ())
            values = [[100 * row[self.score] for row in rows if row.get('dataset') == each] for each in self.sets]
            means = [float(np.mean(each)) if each else None for each in values]
            mine = _shown(means, 'no answers' if name in answers else 'not run')
            theirs = _shown(dict(self.figures).get(name, [None] * len(self.sets)), '-')
            lines.append(f'| {name} | {" | ".join(f"{a} / {b}" for a, b in zip(mine, theirs, strict=True))} |')
        return '\n'.join(lines)


def _shown(values: Sequence[float | None], missing: str) -> list[str]:
    """The values, and their average if none is missing."""
    average = None if None in values else float(np.mean(values))
    return [missing if value is None else f'{value:.2f}' for value in (*values, average)]
