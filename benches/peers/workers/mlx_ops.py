"""Single ops in MLX, in f32: those of the example `op_speed` of crates/kernels that MLX has in one call, without their
gradients. Others are answered with null."""
import mlx.core as mx
import protocol


def main():
    job = protocol.read_job()
    mx.set_default_device(mx.cpu if job["device"] == "cpu" else mx.gpu)
    protocol.serve(measure, version=mx.__version__)


def measure(request):
    op = OPS.get(request["op"])
    if op is None or request["pass"] != "forward" or "Neighbours" in request["case"]:
        return {"ms": None}
    call = op(request["case"])
    return {"ms": protocol.undisturbed_ms(lambda: mx.eval(call()))}


def random(case):
    return made(*map(int, case.split("x")))


def made(*sizes):
    value = mx.random.normal(sizes)
    mx.eval(value)
    return value


def linear(case):
    rows, inputs, outputs = map(int, case.split()[0].split("x"))
    x, weight = made(rows, inputs), made(outputs, inputs)
    return lambda: x @ weight.T


def attention(case):
    queries, keys, values = (made(1, heads, int(case), 64) for heads in (14, 2, 2))
    return lambda: mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.125, mask="causal")


def softmax(case):
    x = random(case)
    return lambda: mx.softmax(x, axis=-1)


def layer_norm(case):
    x = random(case)
    weight, bias = mx.ones(x.shape[-1]), mx.zeros(x.shape[-1])
    return lambda: mx.fast.layer_norm(x, weight, bias, 1e-5)


def rms_norm(case):
    x = random(case)
    weight = mx.ones(x.shape[-1])
    return lambda: mx.fast.rms_norm(x, weight, 1e-6)


def gated(case):
    gate, up = random(case), random(case)
    return lambda: gate * mx.sigmoid(gate) * up


def rope(case):
    rows, heads, width = map(int, case.split()[0].split("x"))
    x = made(1, heads, rows, width)
    return lambda: mx.fast.rope(x, width, traditional=False, base=1e6, scale=1.0, offset=0)


OPS = {op.__name__: op for op in (attention, gated, layer_norm, linear, rms_norm, rope, softmax)}

main()
