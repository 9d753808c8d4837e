"""Single ops in PyTorch, in f32: one request for each op, case and pass of the example `op_speed` of crates/kernels."""
import protocol
import torch


def main():
    job = protocol.read_job()
    torch.set_num_threads(job["threads"])
    protocol.serve(measure, version=torch.__version__)


def measure(request):
    with torch.no_grad():
        return {"ms": protocol.undisturbed_ms(OPS[request["op"]](request["case"], request["pass"]))}


def attention(case, single):
    # PyTorch's faster way to share heads.
    def forward():
        return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)

    inputs = [torch.randn(1, heads, int(case), 64) for heads in (14, 2, 2)]
    if single == "forward":
        return forward
    with torch.enable_grad():
        inputs = [tensor.requires_grad_() for tensor in inputs]
        out = forward()
    d_out = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, d_out, retain_graph=True)


def linear(case, single):
    sizes, _ = case.split()
    rows, inputs, outputs = map(int, sizes.split("x"))
    weight, x, dy = torch.randn(outputs, inputs), torch.randn(rows, inputs), torch.randn(rows, outputs)
    if single == "forward":
        return lambda: torch.nn.functional.linear(x, weight)
    return (lambda: dy @ weight) if single == "backward" else (lambda: dy.t() @ x)


def lora(case, single):
    sizes, rank = case.split(" rank ")
    (rows, inputs, outputs), rank = map(int, sizes.split("x")), int(rank)
    a, b, weight = torch.randn(rank, inputs), torch.randn(outputs, rank), torch.randn(outputs, inputs)
    x, y, dy = torch.randn(rows, inputs), torch.randn(rows, outputs), torch.randn(rows, outputs)
    projected = x @ a.t()
    dx, da, db = torch.zeros_like(x), torch.zeros_like(a), torch.zeros_like(b)

    def forward():
        y.addmm_(x @ a.t(), b.t(), alpha=2.0)

    def backward():
        g = dy @ b * 2.0
        dx.addmm_(g, a)
        da.addmm_(g.t(), x)
        db.addmm_(dy.t(), projected, alpha=2.0)

    return {"forward": forward, "backward": backward, "dora norm": lambda: torch.linalg.norm(weight + 2.0 * (b @ a), dim=1)}[single]


def lm_head_loss(case, single):
    """Logits and the sum of losses; backward: with the gradient of the hidden states, the head frozen."""
    sizes, _ = case.split()
    tokens, width, vocabulary = map(int, sizes.split("x"))
    # Logits as models have them.
    weight, hidden = torch.randn(vocabulary, width) / width**0.5, torch.randn(tokens, width)
    targets = torch.randint(0, vocabulary, (tokens,))

    def loss():
        return torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")

    def gradient():
        with torch.enable_grad():
            hidden.requires_grad_().grad = None
            loss().backward()

    return loss if single == "forward" else gradient


def top_k(case, single):
    rows, vocabulary, k = map(int, case.split("x"))
    logits = torch.randn(rows, vocabulary)
    return (lambda: logits.argmax(-1)) if k == 1 else (lambda: logits.topk(k))


def softmax(case, single):
    x, dy = (torch.randn(*map(int, case.split("x"))) for _ in range(2))
    if single == "forward":
        return lambda: torch.softmax(x, -1)
    return lambda: torch.ops.aten._softmax_backward_data(dy, x, -1, torch.float32)


def layer_norm(case, single):
    rows, columns = map(int, case.split("x"))
    x, dy, weight, bias = torch.randn(rows, columns), torch.randn(rows, columns), torch.ones(columns), torch.ones(columns)
    if single == "forward":
        return lambda: torch.nn.functional.layer_norm(x, (columns,), weight, bias, 1e-5)
    _, mean, factor = torch.ops.aten.native_layer_norm(x, (columns,), weight, bias, 1e-5)
    backward = torch.ops.aten.native_layer_norm_backward
    wanted = [True, False, False] if single == "frozen" else [True] * 3
    return lambda: backward(dy, x, (columns,), mean, factor, weight, bias, wanted)


def rope(case, single):
    """As transformers turns halves, and as the original weights' code turns neighbours."""
    sizes, pairs = case.split()
    rows, heads, width = map(int, sizes.split("x"))
    x, turn = torch.randn(rows, heads, width), torch.randn(rows, 1, width // 2)
    cos, sin = torch.cat([turn, turn], -1), torch.cat([turn, turn], -1) * (1 if single == "forward" else -1)
    if pairs == "Neighbours":
        turns = torch.view_as_complex(torch.stack([turn, turn], -1))
        turns = turns if single == "forward" else turns.conj().resolve_conj()
        return lambda: torch.view_as_real(torch.view_as_complex(x.reshape(rows, heads, -1, 2)) * turns).flatten(2)

    def halves():
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    return halves


def embedding(case, single):
    count, _, sizes = case.split()
    vocabulary, width = map(int, sizes.split("x"))
    ids = torch.arange(int(count)) * 7919 % vocabulary
    table, dy = torch.randn(vocabulary, width), torch.randn(int(count), width)
    if single == "forward":
        return lambda: torch.nn.functional.embedding(ids, table)
    return lambda: torch.ops.aten.embedding_dense_backward(dy, ids, vocabulary, -1, False)


def cast(case, _):
    dtypes = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    sizes, source, target = case.split()
    x = torch.randn(*map(int, sizes.split("x"))).to(dtypes[source])
    return lambda: x.to(dtypes[target])


def rms_norm(case, single):
    rows, columns = map(int, case.split("x"))
    x, dy, weight = torch.randn(rows, columns), torch.randn(rows, columns), torch.ones(columns)
    if single == "forward":
        return lambda: torch.nn.functional.rms_norm(x, (columns,), weight, 1e-6)
    with torch.enable_grad():
        x, weight = x.requires_grad_(), weight.requires_grad_()
        y = torch.nn.functional.rms_norm(x, (columns,), weight, 1e-6)
    return lambda: torch.autograd.grad(y, (x, weight), dy, retain_graph=True)


def gated(case, single):
    gate, up, dy = (torch.randn(*map(int, case.split("x"))) for _ in range(3))
    if single == "forward":
        return lambda: torch.nn.functional.silu(gate) * up
    with torch.enable_grad():
        gate, up = gate.requires_grad_(), up.requires_grad_()
        y = torch.nn.functional.silu(gate) * up
    return lambda: torch.autograd.grad(y, (gate, up), dy, retain_graph=True)


def adamw(case, single):
    value = torch.randn(int(case)).requires_grad_()
    value.grad = torch.randn(int(case))
    if single == "norm":
        return lambda: torch.linalg.vector_norm(value.grad)
    optimizer = torch.optim.AdamW([value], lr=1e-4, weight_decay=0.01, fused=True)
    return lambda: optimizer.step()


OPS = {op.__name__: op for op in (adamw, attention, cast, embedding, gated, layer_norm, linear, lm_head_loss, lora, rms_norm, rope, softmax, top_k)}


main()
