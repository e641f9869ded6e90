"""Operations against hand counts and PyTorch's own counter, memory against what a process really takes."""

import json
import subprocess
import sys
from math import log2
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rsdmri.config import load_config
from rsdmri.diffusion.backbones import build_backbone
from rsdmri.distillation.discriminator import View, play
from rsdmri.runtime import free_host_memory
from rsdmri.training.adversary import build_discriminator
from rsdmri.workflows.cost import Memory, SliceSize, discriminator_cost, network_cost, operations

ROOT = Path(__file__).resolve().parents[2]


def test_a_tiny_network_costs_what_a_hand_count_says():
    config = load_config(None, ["network.channels=[8]", "network.attention=false"])
    cost = network_cost(config, SliceSize(4, 4, 6))
    pixels, embedding = 24, 32
    conv = {(i, o): 2 * pixels * 9 * i * o for i, o in ((3, 8), (8, 8), (16, 8), (8, 2))}
    embed = 2 * (32 * embedding + embedding * embedding)
    modulations = 3 * 2 * embedding * 16
    skip = 2 * pixels * 16 * 8  # of the block on the way up
    hand = conv[3, 8] + 5 * conv[8, 8] + conv[16, 8] + conv[8, 2] + embed + modulations + skip
    assert cost.forward == hand
    assert cost.learning == 2 * hand - conv[3, 8]
    assert cost.parameters == sum(p.numel() for p in build_backbone(config).parameters())


@pytest.mark.parametrize(("height", "width"), [(16, 24), (13, 18)])
def test_counts_agree_with_the_counter_of_pytorch(height, width):
    config = load_config(None, ["network.channels=[8,16,32]", "network.blocks=2"])
    cost = network_cost(config, SliceSize(4, height, width))
    unet = build_backbone(config).to("meta")  # where attention is made of products that the counter knows
    x, level = torch.zeros(1, 3, height, width, device="meta"), torch.zeros(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        result = unet(x, level)
        forward = counter.get_total_flops()
        result.sum().backward()
    assert cost.forward == forward
    assert cost.learning == pytest.approx(counter.get_total_flops() - forward, rel=0.01)
    unet.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        unet(x.requires_grad_(True), level).sum().backward()
    assert cost.passing == pytest.approx(counter.get_total_flops() - forward, rel=0.01)


def test_attention_keeps_no_scores_and_images_of_that_size_are_not_taken_for_them():
    """At 32 x 32 in two levels attention has 256 positions; at 16 x 16 in three levels 16: as many as pixels a side."""
    with_it, without = (
        network_cost(load_config(None, ["network.channels=[8,8]", f"network.attention={on}"]), SliceSize(4, 32, 32))
        for on in ("true", "false")
    )
    assert 0 < with_it.saved - without.saved < 4 * 256 * 256
    small = network_cost(load_config(None, ["network.channels=[8,8,8]"]), SliceSize(4, 16, 16))
    large = network_cost(load_config(None, ["network.channels=[8,8,8]"]), SliceSize(4, 32, 32))
    assert large.saved == pytest.approx(4 * small.saved, rel=0.05)


def test_operations_of_the_acquisition_operator():
    size = SliceSize(3, 8, 16)
    normal, transform = 384 * (10 * log2(16) + 16), 384 * (5 * log2(128) + 12)
    published = load_config(None, ["network.channels=[8]", "network.preconditioning=published"])
    cost = network_cost(published, size)
    found = operations(published, "teacher", size, cost)
    assert found.physics == pytest.approx(normal + 3 * transform)
    assert found.network == cost.forward + cost.learning
    assert found.total == found.network + found.physics
    solving = load_config(None, ["network.channels=[8]", "network.cg_iterations=5"])
    extra = operations(solving, "teacher", size, cost).physics - found.physics
    assert extra == pytest.approx(5 * (normal + 24 * 128))
    points = SliceSize(3, 8, 16, lines=False)
    more = operations(published, "teacher", points, cost).physics - found.physics
    assert more == pytest.approx(384 * 10 * (log2(128) - log2(16)))
    assert operations(published, "teacher", SliceSize(0, 8, 16), cost).physics == 0


def test_operations_of_the_distillation():
    size = SliceSize(3, 8, 16)
    costs = {}
    for objective in ("sid", "dmd", "sds"):
        config = load_config(None, ["network.channels=[8]", f"prior.objective={objective}"])
        cost = network_cost(config, size)
        costs[objective] = operations(config, "prior", size, cost).network - 2 * (cost.forward + cost.learning)
    assert costs == {"sid": 2 * (cost.forward + cost.passing), "dmd": 2 * cost.forward, "sds": cost.forward}


def test_operations_of_the_discriminator_agree_with_the_counter_of_pytorch():
    size, found = SliceSize(3, 16, 16), {}
    for name, chosen in {"none": "alpha=1", "beside": "adversarial=1", "alone": "objective=ambient-gan"}.items():
        config = load_config(None, ["network.channels=[8,16]", f"prior.{chosen}"])
        cost = network_cost(config, size)
        found[name] = operations(config, "prior", size, cost).network
    assert discriminator_cost(load_config(None, ["network.channels=[8,16]"]), size) is None
    one, other = (build_discriminator(config, 1.0).to("meta") for _ in range(2))
    image = torch.zeros(1, 16, 16, dtype=torch.complex64, device="meta")
    mask = torch.zeros(1, 1, 16, dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as counter:
        fake = View(image.clone().requires_grad_(True), mask)
        game = play(one, other.requires_grad_(False), View(image, mask), fake, 1.0)
        (game.generator + game.discriminator).sum().backward()
    assert found["beside"] - found["none"] == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert found["alone"] == pytest.approx(counter.get_total_flops() + cost.forward + cost.learning, rel=0.03)


def test_the_largest_batch_is_the_largest():
    memory = Memory(fixed=100.0, item=7.0)
    for free in (107.0, 150.0, 163.9, 10_000.0):
        batch = memory.largest_batch(free)
        assert memory.of(batch) <= free < memory.of(batch + 1)
    assert memory.largest_batch(106.0) == memory.largest_batch(0.0) == 0


MEASURE = """
import json, sys
from rsdmri.config import load_config
from rsdmri.diffusion.backbones import build_backbone
from rsdmri.runtime import prepare_process, select_device
from rsdmri.training.shards import Shards
from rsdmri.workflows.cost import SliceSize, memory, network_cost
from rsdmri.workflows.throughput import trial_step

def status(key):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))

prepare_process()
size, device, shards = SliceSize(8, 48, 64), select_device("cpu"), Shards(2, select_device("cpu"))
config = load_config(None, ["network.channels=[16,32]", "teacher.batch=12"])
trial_step(load_config(None, ["network.channels=[8]", "teacher.batch=2"]), SliceSize(2, 16, 16), device, shards)
predicted = memory(config, "teacher", size, network_cost(config, size), shares=2).of(12)
before = status("VmRSS")
trial_step(config, size, device, shards)
print(json.dumps([predicted, status("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_predicted_within_thirty_percent():
    run = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True)
    predicted, measured = json.loads(run.stdout)
    assert predicted == pytest.approx(measured, rel=0.3)


def host(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8000 * 1024),
        ({"memory.max": "max\n", "memory.current": "5\n", "memory.stat": "inactive_file 1\n"}, 8000 * 1024),
        ({"memory.max": "5000\n", "memory.current": "4000\n", "memory.stat": "anon 9\ninactive_file 300\n"}, 1300),
        ({"memory.max": "5000\n", "memory.current": "6000\n", "memory.stat": "anon 9\n"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "5000\n",
                "memory/memory.usage_in_bytes": "1000\n",
                "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 50\n",
            },
            4050,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": "1000\n",
                "memory/memory.stat": "\n",
            },
            8000 * 1024,
        ),
    ],
    ids=["no group", "no limit", "version 2", "over the limit", "version 1", "version 1 without limit"],
)
def test_free_memory_heeds_the_control_group(tmp_path, files, expected):
    root = host(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert free_host_memory(root) == expected


def test_free_memory_is_unknown_where_nothing_tells(tmp_path):
    assert free_host_memory(tmp_path) is None
