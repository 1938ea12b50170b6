"""Reports of a run: the line of a step, its evaluations, the summary at its end, and several runs pooled."""

import collections
import json
import pathlib
from collections.abc import Sequence
from importlib.util import find_spec

import jax
import numpy as np

from zerosearch_jax import progress, settings
from zerosearch_jax.evaluate import intervals
from zerosearch_jax.evaluate.scores import METRICS, counted
from zerosearch_jax.run import cost, curves, disk, jsonl

COVERED = '95 % intervals over questions alone, of this seed'


def headline(measured: dict[str, float]) -> str:
    """The line of a step: the few numbers to watch."""
    failed = measured['rollout/search_failed']
    return (
        f'reward {measured["reward/mean"]:.3f}  length {measured["rollout/response_tokens"]:.0f}  '
        f'searches {measured["rollout/searches"]:.2f}  noise {measured["rollout/noise"]:.2f}  '
        + (f'{failed:.0%} OF SEARCHES FAILED  ' if failed else '')
        + f'{measured["speed/tokens_per_second"]:.0f} tok/s'
    )


def trajectory_text(row: dict) -> str:
    """A trajectory's row (scores.as_row) as text: the question, the outcome, and all text after the prompt."""
    golds, reward = ' / '.join(row['golden_answers']), row['reward']
    head = f'{row["question"]}\ngold: {golds}\nanswer: {row["answer"]}  reward {reward:.3f}  {row["status"]}\n\n'
    return head + ''.join(s['text'] for s in row['segments'] if s['kind'] != 'prompt')


def has_evaluation(workdir: pathlib.Path, number: int) -> bool:
    path = workdir / 'metrics.jsonl'
    return path.exists() and any(row['step'] == number and 'eval/em' in row for row in jsonl.read_jsonl(path))


def evaluation_means(rows: Sequence[dict]) -> dict[str, float]:
    """An evaluation's row of metrics.jsonl: means over episodes without a failed search, and the number of the others.

    With 'eval/failed' the evaluation is incomplete. If the questions are from several data sets, 'eval/SET/em' and so
    on are the means for each set.
    """
    valid = counted(rows)
    parts = {'eval': valid, **{f'eval/{name}': own for name, own in by_set(valid).items()}}
    means = {f'{at}/{name}': float(np.mean([row[name] for row in x])) for at, x in parts.items() for name in METRICS}
    means['eval/searches'] = float(np.mean([len(row['searches']) for row in valid]))
    return means | ({'eval/failed': len(rows) - len(valid)} if len(valid) < len(rows) else {})


def by_set(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """The rows of each data set; {} if there is only one."""
    sets = collections.defaultdict(list)
    for row in rows:
        sets[row.get('dataset')].append(row)  # rows of an earlier version have none
    return {name: sets[name] for name in sorted(filter(None, sets)) if len(sets) > 1}


def evaluation_text(means: dict[str, float]) -> str:
    """An evaluation's row of metrics.jsonl as one line."""
    failed = means.get('eval/failed')
    return f'EM {means["eval/em"]:.3f}  F1 {means["eval/f1"]:.3f}  searches {means["eval/searches"]:.2f}' + (
        f'  INCOMPLETE: {failed} questions failed' if failed else ''
    )


def evaluation_file(workdir: pathlib.Path, number: int) -> pathlib.Path:
    return workdir / 'evaluation' / f'step_{number:06d}.jsonl'


def forget_evaluations_after(workdir: pathlib.Path, number: int):
    """Removes evaluations of steps that a run will make again, perhaps with other weights."""
    for path in (workdir / 'evaluation').glob('step_*.jsonl'):
        if _step_of(path) > number:
            path.unlink()


def put_evaluations_aside(workdir: pathlib.Path):
    """Moves the evaluations so far to their own directory, since later ones are asked differently and not compared.

    Their rows leave metrics.jsonl, which is drawn. Called again after a crash, it completes the move.
    """
    written = jsonl.recover_jsonl(workdir / 'metrics.jsonl')
    kept = [row for row in written if not any(key.startswith('eval/') for key in row)]
    if len(kept) < len(written):
        jsonl.write_jsonl(workdir / 'metrics.jsonl', kept)
    directory = workdir / 'evaluation'
    partial = directory / '.before.partial'
    made = sorted(directory.glob('step_*.jsonl'))
    if not made and not partial.exists():
        return
    partial.mkdir(exist_ok=True)
    for path in made:
        path.replace(partial / path.name)
    numbers = [path.name.removeprefix('before_') for path in directory.glob('before_*')]
    aside = directory / f'before_{1 + max((int(number) for number in numbers if number.isdigit()), default=0)}'
    partial.rename(aside)
    count = len(list(aside.iterdir()))
    progress.log(
        f'{count} evaluations had other settings: they are now in {aside} and are not compared with later ones'
    )


def summarize(workdir: pathlib.Path) -> dict:
    """Writes summary.json and curves.png from what the run has written so far."""
    curves.plot_curves(workdir)
    written = jsonl.read_jsonl(workdir / 'metrics.jsonl') if (workdir / 'metrics.jsonl').exists() else []
    steps = [row for row in written if 'reward/mean' in row]
    summary: dict = {'steps': steps[-1]['step'] if steps else 0}
    if steps:
        summary['last_reward'] = steps[-1]['reward/mean']
        summary['cost'] = _cost(workdir, steps)
        summary['failed_searches'] = sum(row.get('cost/failed_queries', 0) for row in steps)
    evaluated = evaluations(workdir)
    summary['evaluations'] = {}
    for number, found in evaluated.items():
        sets = {name: scores_with_intervals(own) for name, own in by_set(found).items()}
        summary['evaluations'][str(number)] = scores_with_intervals(found) | ({'sets': sets} if sets else {})
    if 0 in evaluated and len(evaluated) > 1 and (pairs := paired(evaluated[0], evaluated[max(evaluated)])):
        before, after = np.array([[row['em'] for row in pair] for pair in pairs], float).T
        means = {'before': float(before.mean()), 'after': float(after.mean())}  # of the same questions
        gain = intervals.with_interval(after - before)
        summary['em_gain'] = gain | means | {'failed': len(evaluated[0]) - len(pairs)}
    disk.write_text(workdir / 'summary.json', json.dumps(summary, indent=2) + '\n')
    return summary


def overlay(workdirs: Sequence[pathlib.Path], path: pathlib.Path, titles: Sequence[str] = ()) -> str:
    """Draws the curves of several trainings in the figure `path`; returns a table of their results.

    Args:
      workdirs: of the trainings.
      path: of the figure.
      titles: of the panels (run/curves.py); (): all.

    Raises:
      ValueError: one of them has measured nothing, there is no such panel, nothing to draw in those, or matplotlib is
        not installed.
    """
    if unknown := {*titles} - {panel.title for panel in curves.PANELS}:
        known = ', '.join(panel.title for panel in curves.PANELS)
        raise ValueError(f'there is no panel {min(unknown)!r}; the panels are {known}')
    lines = ['| run | steps | reward, last step | EM, last evaluation | F1 | failed |', '|---|---|---|---|---|---|']
    for workdir in workdirs:
        source = workdir / 'metrics.jsonl'
        rows = [row for row in jsonl.read_jsonl(source) if 'reward/mean' in row] if source.is_file() else []
        if not rows:
            raise ValueError(f'{workdir} holds no training that made a step; give the --workdir of each')
        evaluated = evaluations(workdir)
        last = max(evaluated, default=None)
        scored = scores_with_intervals(evaluated[last]) if evaluated else {}
        cells = [intervals.shown(scored[name]) if scored.get(name) else 'none' for name in ('em', 'f1')]
        at = f' after step {last}' if scored else ''
        cells = [workdir, rows[-1]['step'], f'{rows[-1]["reward/mean"]:.3f}', cells[0] + at, cells[1]]
        lines.append(f'| {" | ".join(map(str, cells))} | {scored.get("failed", "none")} |')
    if not curves.plot_curves(*workdirs, path=path, titles=titles):
        why = f'none of the runs has measured anything for {", ".join(titles)}'
        raise ValueError(f'{path} cannot be drawn: {why if find_spec("matplotlib") else "matplotlib is not installed"}')
    return '\n'.join([*lines, '', f'{path}; {COVERED}'])


def _cost(workdir: pathlib.Path, steps: list[dict]) -> dict:
    """The cost of all steps, and its price."""
    names = {'queries': 'cost/queries', 'tokens': 'cost/tokens', 'device_seconds': 'speed/device_seconds'}
    counted = {name: sum(row.get(key, 0) for row in steps) for name, key in names.items()}
    prices = cost.PricesConfig(**json.loads((workdir / 'config.json').read_text()).get('prices', {}))
    device = jax.devices()[0].device_kind
    dollars, line = cost.price(counted, device, prices), cost.cost_line(counted, device, prices)
    return counted | dollars | {'device': device, 'text': line}


def evaluations(workdir: pathlib.Path) -> dict[int, list[dict]]:
    """Rows of every evaluation of a run, by step."""
    files = sorted((workdir / 'evaluation').glob('step_*.jsonl'))
    return {_step_of(path): jsonl.read_jsonl(path) for path in files}


def _step_of(path: pathlib.Path) -> int:
    return int(path.stem.removeprefix('step_'))


def scores_with_intervals(group: list[dict]) -> dict:
    """Scores of the questions without a failed search, and the number of questions with one."""
    valid = counted(group)
    return {
        'questions': len(valid),
        'failed': len(group) - len(valid),
        **{name: intervals.with_interval([row[name] for row in valid]) if valid else None for name in METRICS},
    }


def paired(before: list[dict], after: list[dict]) -> list[tuple[dict, dict]]:
    """The two rows of each question that counts in both evaluations."""
    later = {row['id']: row for row in counted(after)}
    return [(row, later[row['id']]) for row in counted(before) if row['id'] in later]


def summary_text(summary: dict, workdir: pathlib.Path) -> str:
    """The summary as a few lines of text."""
    lines = [f'{summary["steps"]} steps; written to {workdir}']
    for number, scored in summary['evaluations'].items():
        lines.append(f'  after step {number}: {_scores_text(scored)}  ({_asked(scored)}, {COVERED})')
        lines += [f'    {name}: {_scores_text(own)}  ({_asked(own)})' for name, own in scored.get('sets', {}).items()]
    if 'cost' in summary:
        lines.append(f'  {summary["cost"]["text"]}')
    if 'em_gain' in summary:
        lines.append(f'  {_gain_text(summary["em_gain"])}')
    if failed := summary.get('failed_searches'):
        lines.append(
            f'  {failed} of {summary["cost"]["queries"]} searches of the training failed; their episodes do not count'
        )
    return '\n'.join(lines)


def _scores_text(scored: dict) -> str:
    return '  '.join(f'{name} {intervals.shown(scored[name])}' for name in METRICS)


def _gain_text(gain: dict) -> str:
    """The line that says what training changed."""
    mean, low, high = (100 * value for value in (gain['mean'], *gain['interval']))
    return (
        f'Before training {gain["before"]:.1%} of the held-out questions were answered exactly right, after it '
        f'{gain["after"]:.1%}: {mean:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, paired by question)'
        + (f'; INCOMPLETE: {gain["failed"]} more failed' if gain['failed'] else '')
    )


def _asked(scored: dict) -> str:
    failed = scored.get('failed')
    return f'{scored["questions"]} questions' + (f'; INCOMPLETE: {failed} more failed' if failed else '')


def pool(workdirs: Sequence[pathlib.Path]) -> dict:
    """The gain of training, pooled over runs that differ only in their seed.

    Returns:
      'before', 'after' and 'gain' for EM and F1: the mean over questions and runs and its interval, which covers both
      (of one run: questions alone), 'searches' before and after, and 'runs' with the gain of each. The comparison is
      paired: the 'questions' that all evaluations answered; 'failed' counts those whose search failed. 'step' is that
      of the last evaluation; if the runs were to have more, a line says so.

    Raises:
      ValueError: no run is there, it has not been evaluated twice, or the runs differ in more than their seed.
    """
    for workdir in workdirs:
        if not (workdir / 'config.json').exists():
            raise ValueError(f'{workdir} holds no run: it has no config.json')
    configs = [settings.read_json(workdir / 'config.json') for workdir in workdirs]
    for workdir, config in zip(workdirs, configs, strict=True):
        if changes := settings.changes(configs[0], config, (*settings.MAY_CHANGE, 'seed')):
            different = '; '.join(changes.values())
            raise ValueError(f'only the seed may differ between {workdirs[0]} and {workdir}: {different}')
    if len({config['seed'] for config in configs}) < len(configs):
        raise ValueError(f'of {len(configs)} runs some have the same seed')
    pairs, asked, last = [], set(), {}
    for workdir in workdirs:
        evaluated = evaluations(workdir)
        if 0 not in evaluated or len(evaluated) < 2:
            at = ', '.join(map(str, evaluated)) or 'no'
            raise ValueError(
                f'{workdir} was evaluated after {at} steps; a gain needs one before the first and one after'
            )
        asked |= {row['id'] for row in evaluated[0]}
        last[max(evaluated)] = workdir
        pairs.append({row['id']: (row, later) for row, later in paired(evaluated[0], evaluated[max(evaluated)])})
    if len(last) > 1:
        steps = ', '.join(f'{workdir} after step {step}' for step, workdir in last.items())
        raise ValueError(f'the last evaluations are of different steps: {steps}')
    common = sorted(set.intersection(*map(set, pairs)))
    if not common:
        raise ValueError('no question has an answer in all evaluations of all these runs')
    (step,), steps = last, configs[0].get('rl', {}).get('steps', 0)
    if step < steps:
        progress.log(f'the runs were last evaluated after step {step} of {steps}: their gain is not that of all steps')
    pooled: dict = {'step': step, 'questions': len(common), 'failed': len(asked) - len(common)}
    rows = [[[found[i][part] for found in pairs] for i in common] for part in (0, 1)]
    for name in ('em', 'f1'):
        before, after = (np.array([[row[name] for row in runs] for runs in part]) for part in rows)
        parts = {'before': before, 'after': after, 'gain': after - before}
        pooled[name] = {part: intervals.with_interval(x, (-1 if part == 'gain' else 0, 1)) for part, x in parts.items()}
        pooled[name]['runs'] = {
            config['seed']: float(gain) for config, gain in zip(configs, parts['gain'].mean(0), strict=True)
        }
    pooled['searches'] = [float(np.mean([len(row['searches']) for runs in part for row in runs])) for part in rows]
    return pooled
