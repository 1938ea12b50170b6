"""Exports trained weights for other programs: an adapter as a `peft` directory, or merged into its base model.

  python -m launch.export runs/quickstart/adapter.safetensors exported
  python -m launch.export runs/quickstart/adapter.safetensors exported --merge --base=smollm2-135m-instruct

The first argument is an adapter (a file, or the name of a shipped one). Merged, the directory is a whole model with its
tokenizer, which `transformers` and every server of its models load.
"""

import pathlib

from absl import app, flags

_BASE = flags.DEFINE_string('base', 'smollm2-135m-instruct', 'The model that the adapter was trained on.')
_MERGE = flags.DEFINE_bool('merge', False, 'Writes the whole model.')
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', ['float32', 'bfloat16'], 'Of a merged model.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax import roles, sharding
        from zerosearch_jax.models import lora, peft, weights

        if len(argv) != 3:
            raise ValueError('which adapter, and where to? for example: runs/quickstart/adapter.safetensors exported')
        mesh, directory = sharding.make_mesh(), pathlib.Path(argv[2])
        model = roles.load_model(_BASE.value, mesh)
        adapter = roles.load_adapter(argv[1], model.cfg, mesh)
        if _MERGE.value:
            weights.save(lora.merge(lora.combine(model.params, adapter)), model.cfg, directory, _DTYPE.value)
            model.tokenizer.save(directory)
        else:
            peft.save(directory, adapter, _BASE.value)
        print(directory)


if __name__ == '__main__':
    app.run(main)
