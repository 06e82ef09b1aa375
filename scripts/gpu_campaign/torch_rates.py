"""torch_rates.py RESULTS: what this GPU can do, on random data (zeros draw less power and run faster), by PyTorch."""
import json
import os
import pathlib
import sys
import time

import torch

results = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}


def keep(name, value):
    results[name] = value
    path = pathlib.Path(sys.argv[1])
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1))
    os.replace(part, path)
    print(f"{name:36} {value:10.3f}", flush=True)


def seconds(work, times=5):
    """The median, on the device's clock, after one to warm up."""
    work()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    measured = []
    for _ in range(times):
        begin.record()
        work()
        end.record()
        end.synchronize()
        measured.append(begin.elapsed_time(end) / 1e3)
    return sorted(measured)[times // 2]


def wall_seconds(work):
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def memory():
    size = 2 << 30
    x = torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    keep("copy_TB_per_s", 2 * size / seconds(lambda: y.copy_(x)) / 1e12)
    host = torch.empty(size // 2, dtype=torch.uint8, pin_memory=True)
    host.copy_(x[: size // 2])
    keep("host_to_device_pinned_GB_per_s", host.numel() / seconds(lambda: y[: size // 2].copy_(host, non_blocking=True)) / 1e9)
    keep("device_to_host_pinned_GB_per_s", host.numel() / seconds(lambda: host.copy_(x[: size // 2], non_blocking=True)) / 1e9)
    pages = torch.empty(size, dtype=torch.uint8)
    keep("touch_GB_per_s", size / wall_seconds(lambda: pages.fill_(1)) / 1e9)
    runtime = torch.cuda.cudart()
    keep("pin_touched_GB_per_s", size / wall_seconds(lambda: runtime.cudaHostRegister(pages.data_ptr(), size, 0)) / 1e9)
    keep("unpin_GB_per_s", size / wall_seconds(lambda: runtime.cudaHostUnregister(pages.data_ptr())) / 1e9)


def products(name, dtype, shapes):
    for m, n, k in shapes:
        x, w = (torch.randn(rows, k, device="cuda").to(dtype) for rows in (m, n))
        keep(f"{name}_{m}x{n}x{k}_TFLOPs", 2.0 * m * n * k / seconds(lambda: x @ w.T) / 1e12)


def factorization(n):
    # Positive definite without the price of a product: a random matrix's spectrum ends at 2 sqrt(n).
    a = torch.randn(n, n, device="cuda")
    a = (a + a.T) / 2 ** 0.5
    a.diagonal().add_(4 * n ** 0.5)
    torch.linalg.cholesky(a)
    keep(f"cholesky_{n}_s", wall_seconds(lambda: torch.linalg.cholesky(a)))


torch.backends.cuda.matmul.allow_tf32 = False
memory()
products("bf16", torch.bfloat16, [(8192, 8192, 8192), (2048, 8192, 8192), (2048, 1024, 8192), (2048, 28672, 8192),
                                  (2048, 8192, 28672), (8192, 28672, 8192)])
products("f32", torch.float32, [(8192, 8192, 8192), (256, 28672, 28672), (256, 8192, 128)])
torch.backends.cuda.matmul.allow_tf32 = True
products("tf32", torch.float32, [(256, 28672, 28672)])
torch.backends.cuda.matmul.allow_tf32 = False
factorization(28672)
