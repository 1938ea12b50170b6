"""One of the processes of tests/workflows/test_two_process.py: `work` on the mesh (2, 2, 2) of all processes.

python two_process_worker.py PROCESS PROCESSES PORT DIRECTORY
"""

import dataclasses
import itertools
import os
import pathlib
import pickle
import sys


def work(checkpoints: pathlib.Path) -> dict:
    """Generations, calls to the outside and two updates, the state saved in between: plain Python and NumPy results."""
    import jax
    from helpers import TINY, drain, random_batch, requests, tiny_engine, tiny_params

    from configs.common import sections
    from zerosearch_jax import policy, pretrained, settings
    from zerosearch_jax.audit import audit
    from zerosearch_jax.data.rows import Question
    from zerosearch_jax.evaluate.results import missing
    from zerosearch_jax.generate import capacity
    from zerosearch_jax.models import transformer
    from zerosearch_jax.rl import losses, state, step
    from zerosearch_jax.run import jsonl
    from zerosearch_jax.run.checkpoint import Checkpoints
    from zerosearch_jax.search import journal
    from zerosearch_jax.sharding import make_mesh
    from zerosearch_jax.text.tokenizer import byte_tokenizer

    mesh = make_mesh((2, 2, 2))
    params = tiny_params(mesh)
    engine = tiny_engine(mesh, params)
    results = {}
    for temperature in (0.0, 1.0):
        engine.load(params, temperature=temperature)
        asked = requests((1, 5, 20, 40, 33, 60, 2, 20), 10)
        first = drain(engine, asked, close=False)
        for handle in first:
            engine.extend(handle, (1, 2, 3), 4)
        second = drain(engine)
        third = drain(engine, requests((9, 9, 30, 30, 30, 30, 30, 30, 30, 30), 5))
        for turn, stopped in enumerate((first, second, third)):
            results |= {(temperature, turn, h): dataclasses.asdict(r) for h, r in stopped.items()}

    apart = tiny_engine(make_mesh((8, 1, 1)), params)  # on another mesh than the weights
    done = drain(apart, requests((1, 5, 20, 40, 33, 60, 2, 20), 10))
    results |= {(1.0, 3, h): dataclasses.asdict(r) for h, r in done.items()}

    log, numbers = journal.Journal(checkpoints.parent / 'calls.log'), itertools.count()

    def ask(positions):  # an engine that answers differently on every call, on every process
        return ((i, f'{os.getpid()}, call {next(numbers)}: {i}', i != 1) for i in positions)

    calls = [journal.call_once(log, ['a', 'b', 'c'][: 2 + turn], ask) for turn in range(2)]

    def give_up(positions):
        raise OSError('no more money')

    try:
        journal.call_once(log, ['d'], give_up)
    except OSError as error:  # told to all, or the others would wait for ever
        calls.append(str(error).removeprefix('process 0: '))

    made = jsonl.append_jsonl if jax.process_index() == 0 else lambda *_: None  # the others' disk may hold nothing
    row = {'method': 'rag', 'weights': 'w', 'dataset': 'x', 'id': 'q1', 'status': 'answered'}
    made(checkpoints.parent / 'results.jsonl', [row])
    questions = {'x': [Question(name, 'why?', ('b',)) for name in ('q0', 'q1')]}
    left = missing({'rag': 'w'}, checkpoints.parent / 'results.jsonl', questions)

    made = sections(audit.Config)
    made.mesh = (2, 2, 2)
    made.audit.update(name='oracle', queries=3)
    made.simulator.kind = 'oracle'
    audit.audit(audit.parse(made), checkpoints.parent / 'audit', settings.to_json(made))
    answers = jsonl.shared_jsonl(checkpoints.parent / 'audit' / 'oracle' / 'answers.jsonl')

    own = checkpoints.parent / f'export_{jax.process_index()}'
    policy.export_weights(params, pretrained.Model(TINY, byte_tokenizer(), params), False, own, '{}')

    tx = state.optimizer(state.OptimizerConfig(learning_rate=1e-3), 10)
    shardings = state.state_shardings(transformer.layout(TINY), tx, mesh)
    update = step.make_update(TINY, tx, shardings, losses.LossConfig(), losses.Compute(chunk=32))
    measures, saved = [], Checkpoints(checkpoints)
    with jax.set_mesh(mesh):
        now = state.create(params, tx, shardings)
        for seed in range(2):
            now, measured = update(now, {}, random_batch(seed=seed))
            measures.append({name: float(value) for name, value in measured.items() if not value.ndim})
            if seed == 0:
                saved.save(1, now, {'step': 1, 'note': 'saved by all'})
        norms = {
            jax.tree_util.keystr(path): float(jax.jit(jax.numpy.linalg.norm)(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(now.params)
        }
    saved.close()
    results = {'generations': results, 'metrics': measures, 'norms': norms, 'calls': calls, 'left': left}
    return results | {'audit': answers, 'cache_gib': capacity.cache_gib(mesh)}


def main(process: int, processes: int, port: str, directory: pathlib.Path):
    os.environ['JAX_PLATFORMS'] = 'cpu'
    devices = f'--xla_force_host_platform_device_count={8 // processes}'
    os.environ['XLA_FLAGS'] = f'{devices} --xla_backend_optimization_level=0'  # as in conftest
    import jax

    jax.distributed.initialize(f'127.0.0.1:{port}', num_processes=processes, process_id=process)
    assert jax.local_device_count() == 8 // processes and len(jax.devices()) == 8
    results = work(directory / 'checkpoints')
    (directory / f'results_{process}.pickle').write_bytes(pickle.dumps(results))
    jax.distributed.shutdown()


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4]))
