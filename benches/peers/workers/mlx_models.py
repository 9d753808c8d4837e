"""Prefill, decode and LoRA training in mlx-lm. Weights are random; training is mlx-lm's own `train`."""
import itertools
import pathlib
import tempfile
import time

import mlx.core as mx
import mlx.optimizers
import mlx_lm
import protocol
from mlx.utils import tree_map
from mlx_lm.models import qwen2
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers

JOB = protocol.read_job()
DTYPE = {"f32": mx.float32, "bf16": mx.bfloat16}[JOB["dtype"]]


def main():
    mx.set_default_device(mx.cpu if JOB["device"] == "cpu" else mx.gpu)
    version = f"{mx.__version__}, mlx-lm {getattr(mlx_lm, '__version__', 'of unknown version')}"
    runner = Training() if JOB["work"] == "train" else Inference()
    runner.warm_up()
    protocol.serve(runner.measure, version=version)


def build():
    model = qwen2.Model(qwen2.ModelArgs.from_dict(JOB["config"] | {"model_type": "qwen2"}))
    mx.random.seed(1)
    model.update(tree_map(lambda value: (mx.random.normal(value.shape) * 0.02).astype(DTYPE), model.parameters()))
    mx.eval(model.parameters())
    return model


def ids(batch, count):
    return mx.array(protocol.token_ids(batch * count, JOB["config"]["vocab_size"])).reshape(batch, count)


def memory():
    return {} if JOB["device"] == "cpu" else {"allocated_gib": mx.get_peak_memory() / 2**30}


class Inference:
    def __init__(self):
        self.model, self.prompt = build(), ids(1, JOB["prompt"] or 1)

    def warm_up(self):
        if JOB["device"] != "cpu":
            self.measure(None)

    def measure(self, _):
        return protocol.speeds(JOB, self.prefill, self.decode) | memory()

    def prefill(self):
        """The head runs on the last token only, as in mlx-lm's `generate`."""
        cache = make_prompt_cache(self.model)
        hidden = self.model.model(self.prompt, cache)[:, -1:]
        mx.eval(mx.argmax(self.model.model.embed_tokens.as_linear(hidden), -1))

    def decode(self):
        """The next step is handed over before the token of the last one is read, as in mlx-lm's `generate`."""
        cache, start = make_prompt_cache(self.model), time.perf_counter()
        token = self.prompt[:, 0]
        for _ in range(JOB["tokens"]):
            following = mx.argmax(self.model(token[:, None], cache=cache)[:, -1], -1)
            mx.async_eval(following)
            token.tolist()
            token = following
        token.tolist()
        return time.perf_counter() - start


class Training:
    def __init__(self):
        self.model = build()
        self.model.freeze()
        keys = [f"self_attn.{target}" for target in JOB["targets"]]
        lora = {"rank": JOB["rank"], "scale": 2.0, "dropout": 0.0, "keys": keys}
        linear_to_lora_layers(self.model, len(self.model.layers), lora)
        self.optimizer = mlx.optimizers.AdamW(learning_rate=1e-4)
        self.checkpointed = False

    def warm_up(self):
        """Each call of `train` compiles its step: the steps that do not count are in `measure`."""

    def measure(self, _):
        times = Times()
        # One pad more than the tokens that are trained: inputs and targets are shifted within the batch.
        batch = ids(JOB["batch"], JOB["seq"] + 1), mx.array([[0, JOB["seq"] + 1]] * JOB["batch"])
        # The layers' class remembers it.
        checkpoint, self.checkpointed = JOB.get("checkpoint", False) and not self.checkpointed, True
        with tempfile.TemporaryDirectory() as folder:
            steps = JOB["warm_up"] + JOB["repetitions"]
            args = TrainingArgs(
                batch_size=JOB["batch"],
                iters=steps,
                steps_per_report=1,
                steps_per_eval=steps + 1,
                steps_per_save=steps + 1,
                max_seq_length=JOB["seq"] + 1,
                adapter_file=str(pathlib.Path(folder) / "adapters.safetensors"),
                grad_checkpoint=checkpoint,
            )
            train(
                self.model,
                self.optimizer,
                train_dataset=[],
                args=args,
                iterate_batches=lambda **_: itertools.repeat(batch),
                training_callback=times,
            )
        rates = sorted(times.rates[JOB["warm_up"] :])
        rate = (rates[(len(rates) - 1) // 2] + rates[len(rates) // 2]) / 2
        result = {"train": rate, "ms": 1e3 * JOB["batch"] * JOB["seq"] / rate, **memory()}
        mx.clear_cache()
        return result


class Times(TrainingCallback):
    """Tokens per second of each step, as mlx-lm counts them."""

    def __init__(self):
        self.rates = []

    def on_train_loss_report(self, info):
        self.rates.append(info["tokens_per_second"])


main()
