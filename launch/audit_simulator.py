"""Audits a simulator: compares what it writes for requests for useful and for noisy documents.

  python -m launch.audit_simulator --config configs/audit_simulator.py:recorded_prompted
  python -m launch.audit_simulator --config configs/audit_simulator.py:recorded

Audits with the same --workdir are shown side by side in audit.md and audit.png. The same command run again continues
where the last one stopped.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the results; default: runs/audit.')


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax import settings
        from zerosearch_jax.audit import audit

        cfg = audit.parse(_CONFIG.value)
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or 'runs/audit')
        print(audit.audit(cfg, workdir, settings.to_json(_CONFIG.value)))


if __name__ == '__main__':
    from launch import common

    common.run(main)
