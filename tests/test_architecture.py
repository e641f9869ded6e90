"""The floors of the house, held by reading every import, and the rules that a reader of one file cannot see.

A module imports from lower floors, or from its own room (package) on its own floor, never in a circle. A new module
needs a line in FLOORS; moving one to another floor is a decision to be made there, in the same commit.
"""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GROUND = -1

FLOORS = {
    "rsdmri": GROUND,  # version and note; its doors to the workflows open on first use only
    "rsdmri.errors": GROUND,
    "rsdmri.privacy": GROUND,
    "rsdmri.files": 0,
    "rsdmri.runtime": 0,
    "rsdmri.config": 0,
    "rsdmri.config.*": 0,
    "rsdmri.progress": 0,
    "rsdmri.physics.fourier": 0,
    "rsdmri.physics.strips": 1,
    "rsdmri.data.scan": 0,
    "rsdmri.metrics.*": 0,
    "rsdmri.metrics.inception": 1,
    "rsdmri.metrics.feature_sets": 1,
    "rsdmri.metrics.proximal": 2,
    "rsdmri.physics.linop": 1,
    "rsdmri.physics.masks": 1,
    "rsdmri.physics.masks.*": 1,
    "rsdmri.diffusion.schedule": 1,
    "rsdmri.diffusion.dropout": 1,
    "rsdmri.diffusion.conditions": 1,
    "rsdmri.diffusion.unet": 1,
    "rsdmri.diffusion.backbones": 1,
    "rsdmri.physics": 2,  # as high as what it passes on
    "rsdmri.physics.sense": 2,
    "rsdmri.physics.solve": 2,
    "rsdmri.physics.noise_estimate": 0,
    "rsdmri.physics.fista": 2,
    "rsdmri.physics.wavelet": 2,
    "rsdmri.physics.tv": 0,
    "rsdmri.physics.noise": 2,
    "rsdmri.physics.noise_corners": 1,
    "rsdmri.physics.compression": 2,
    "rsdmri.physics.map_quality": 1,
    "rsdmri.physics.coils": 2,
    "rsdmri.physics.whitening": 2,
    "rsdmri.physics.corruptions": 2,
    "rsdmri.physics.noncartesian": 2,
    "rsdmri.physics.adapters": 2,
    "rsdmri.physics.volume": 2,
    "rsdmri.physics.emulation": 1,
    "rsdmri.physics.classical": 2,
    "rsdmri.physics.prepare": 3,
    "rsdmri.diffusion.denoiser": 3,
    "rsdmri.diffusion.acquisitions": 3,
    "rsdmri.diffusion.batch": 3,
    "rsdmri.diffusion.objectives": 3,
    "rsdmri.diffusion.equivariance": 3,
    "rsdmri.diffusion.sample": 3,
    "rsdmri.diffusion.amortised": 3,
    "rsdmri.distillation.*": 4,
    "rsdmri.data.stack": 1,
    "rsdmri.data.coverage": 2,
    "rsdmri.data.derived": 1,
    "rsdmri.data.nifti": 4,
    "rsdmri.data.dicom": 4,
    "rsdmri.data.parametric_map": 4,
    "rsdmri.data.hdf5": 4,
    "rsdmri.data.plain_files": 4,
    "rsdmri.data.kspace": 4,
    "rsdmri.data.stored_kspace": 4,
    "rsdmri.data.bart": 4,
    "rsdmri.data.matlab": 4,
    "rsdmri.data.array_files": 4,
    "rsdmri.data.arrays": 4,
    "rsdmri.data.layouts": 4,
    "rsdmri.data.remote": 4,
    "rsdmri.data.slice_reader": 4,
    "rsdmri.data.slice_cache": 4,
    "rsdmri.data.sampling": 4,
    "rsdmri.data.fastmri": 4,
    "rsdmri.data.fastmri_header": 4,
    "rsdmri.data.fastmri_write": 4,
    "rsdmri.data.acquisitions": 4,
    "rsdmri.data.grid": 4,
    "rsdmri.data.placement": 4,
    "rsdmri.data.cartesian": 4,
    "rsdmri.data.ismrmrd": 4,
    "rsdmri.data.ismrmrd_write": 4,
    "rsdmri.data.twix": 4,
    "rsdmri.data.volumes": 4,
    "rsdmri.data.maps": 4,
    "rsdmri.data.anatomy": 4,
    "rsdmri.data.magnitudes": 0,
    "rsdmri.data.simulate": 4,
    "rsdmri.data.simulate_files": 4,
    "rsdmri.data.manifest": 4,
    "rsdmri.data.confine": 0,
    "rsdmri.data.scan_parts": 0,
    "rsdmri.data.schema": 4,
    "rsdmri.data.brief": 4,
    "rsdmri.data.header_check": 4,
    "rsdmri.data.child": 5,
    "rsdmri.data.sandbox": 5,
    "rsdmri.training.manifest": 4,
    "rsdmri.training.recovery": 4,
    "rsdmri.training.validation": 4,
    "rsdmri.training.checkpoint": 4,
    "rsdmri.training.distributed": 1,
    "rsdmri.training.ema": 4,
    "rsdmri.training.snapshots": 4,
    "rsdmri.training.post_hoc": 4,
    "rsdmri.training.shards": 4,
    "rsdmri.training.degraded": 4,
    "rsdmri.training.stage": 4,
    "rsdmri.training.proximal": 4,
    "rsdmri.training.adversary": 5,
    "rsdmri.training.generated": 5,
    "rsdmri.training.single": 4,
    "rsdmri.training.teacher": 5,
    "rsdmri.training.posterior": 5,
    "rsdmri.training.prior": 5,  # the losses of the distillation are below it
    "rsdmri.training.loop": 5,
    "rsdmri.data.formats": 5,
    "rsdmri.data.dataset": 5,
    "rsdmri.priors": 5,
    "rsdmri.model_card": 4,
    "rsdmri.evaluation": 5,
    "rsdmri.evaluation.*": 5,
    "rsdmri.reconstruction.*": 6,
    "rsdmri.report.*": 6,
    "rsdmri.workflows.*": 7,
    "rsdmri.cli": 8,
    "rsdmri.cli.*": 8,
    "rsdmri.__main__": 9,
}
EMPTY_PACKAGES = {f"rsdmri.{room}" for room in ("data", "diffusion", "distillation", "training", "reconstruction")}

# Heavy or replaceable libraries: the only modules that may import them, inside a function.
WRAPPED = {
    "nibabel": {"rsdmri.data.anatomy", "rsdmri.data.magnitudes", "rsdmri.data.nifti"},
    "pydicom": {"rsdmri.data.dicom", "rsdmri.data.parametric_map"},
    "highdicom": {"rsdmri.data.parametric_map"},
    "nilearn": {"rsdmri.data.anatomy"},
    "pywt": {"rsdmri.physics.wavelet"},
    "sigpy": set(),
    "skimage": {"rsdmri.metrics.image", "rsdmri.metrics.radiomics"},
    "defusedxml": {"rsdmri.data.fastmri_header"},
    "hdf5plugin": {"rsdmri.data.hdf5"},
    "finufft": {"rsdmri.physics.noncartesian"},
    "cufinufft": {"rsdmri.physics.noncartesian"},
    "deepinv": {"rsdmri.physics.adapters"},
    "mrpro": {"rsdmri.physics.adapters"},
    "diffusers": {"rsdmri.diffusion.backbones"},
    "monai": {"rsdmri.diffusion.backbones"},
    "ismrmrd": set(),
    "twixtools": {"rsdmri.data.twix"},
    "fsspec": {"rsdmri.data.remote"},
    "tensorboard": {"rsdmri.workflows.tensorboard"},
    "torch_fidelity": {"rsdmri.metrics.inception"},
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "random", "torchvision"}

LONGEST_FILE, LONGEST_FUNCTION = 400, 60


@functools.cache
def modules():
    """Name to syntax tree of every module of the package."""
    found = {}
    for path in sorted((ROOT / "rsdmri").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def is_package(name):
    return (ROOT / Path(*name.split(".")) / "__init__.py").is_file()


def floor(name):
    if name in FLOORS:
        return FLOORS[name]
    if name in EMPTY_PACKAGES:
        return GROUND
    parent = name if is_package(name) else name.rpartition(".")[0]
    return FLOORS.get(f"{parent}.*")


def room(name):
    return name if is_package(name) else name.rpartition(".")[0]


def imported(name):
    """Modules of the package that a module imports, wherever in it; ``from package import module`` is the module."""
    known = modules()
    targets = set()
    for node in ast.walk(known[name]):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= {i if i in known else node.module for i in inner}
    return {target for target in targets if target in known and target != name}


def located(name, node):
    return f"{name.replace('.', '/')} line {node.lineno}"


def test_every_module_has_a_floor():
    unknown = [name for name in modules() if floor(name) is None]
    assert not unknown, f"add to FLOORS in {Path(__file__).name}, on the lowest floor their imports allow: {unknown}"


def test_the_table_names_only_what_exists():
    rooms = {f"{room(name)}.*" for name in modules()}
    assert not [name for name in FLOORS if name not in modules() and name not in rooms]


def test_imports_go_down_or_stay_in_the_room():
    wrong = []
    for name in modules():
        for target in imported(name) if name != "rsdmri" else ():
            high, low = floor(name), floor(target)
            if high is None or low is None:
                continue  # named by the test above
            if low > high or (low == high and room(name) != room(target) and low != GROUND):
                wrong.append(f"{name} (floor {high}) imports {target} (floor {low})")
    assert not wrong, "\n".join(wrong)


def test_imports_form_no_circle():
    done, stack = set(), []

    def visit(name):
        assert name not in stack, "circle: " + " -> ".join([*stack[stack.index(name) :], name])
        if name in done:
            return
        stack.append(name)
        for target in sorted(imported(name) - {"rsdmri"}):
            visit(target)
        done.add(stack.pop())

    for name in modules():
        if name != "rsdmri":
            visit(name)


def test_empty_packages_are_empty():
    for name in EMPTY_PACKAGES:
        body = modules()[name].body
        assert len(body) <= 1, f"{name}/__init__.py holds more than its docstring: give it a floor"


def test_physics_knows_nothing_of_files_and_records():
    allowed = ("rsdmri.physics", "rsdmri.errors", "rsdmri.runtime")
    outside = {
        (n, t) for n in modules() if n.startswith("rsdmri.physics") for t in imported(n) if not t.startswith(allowed)
    }
    assert not outside


def top_level_imports(tree):
    """Import statements that run when the module is imported."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def libraries(node):
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.partition(".")[0] for name in names}


def test_wrapped_libraries_are_imported_by_their_wrapper_alone_and_late():
    wrong = []
    for name, tree in modules().items():
        early = set().union(*(libraries(node) for node in top_level_imports(tree)))
        used = set().union(*(libraries(n) for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))))
        wrong += [f"{name} imports {lib} on import" for lib in early & WRAPPED.keys()]
        wrong += [f"{name} is no wrapper of {lib}" for lib in used & WRAPPED.keys() if name not in WRAPPED[lib]]
        wrong += [f"{name} imports {lib}" for lib in used & FORBIDDEN_MODULES]
    assert not wrong, wrong


HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "h5py",
    "matplotlib",
    "skimage",
    "nibabel",
    "nilearn",
    "sigpy",
    "pywt",
    "jinja2",
    "pydicom",
)


def loaded_after(code):
    """Which of HEAVY a fresh interpreter has loaded after ``code``."""
    script = f"{code}\nimport sys\nprint('loaded', *(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-1].split()[1:]


HELP = """
import sys
from rsdmri.cli import main
sys.argv = ["rsdmri", "--help"]
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    "code",
    ["import rsdmri", "import rsdmri.cli", HELP],
    ids=["import rsdmri", "import rsdmri.cli", "rsdmri --help"],
)
def test_a_light_start(code):
    assert loaded_after(code) == []


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func), {k.arg for k in node.keywords}


def test_devices_are_named_in_runtime_alone():
    wrong = []
    for name, tree in modules().items():
        if name == "rsdmri.runtime":
            continue
        compared = {id(c) for n in ast.walk(tree) if isinstance(n, ast.Compare) for c in (n.left, *n.comparators)}
        for node in ast.walk(tree):
            literal = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in compared
            if literal and re.fullmatch(r"(cuda|cpu|mps|xpu)(:\d+)?", node.value):
                wrong.append(f"{located(name, node)}: {node.value!r}")
        wrong += [f"{located(name, n)}: .cuda()" for n, function, _ in calls(tree) if function.endswith(".cuda")]
    assert not wrong, wrong


def test_no_code_is_executed_from_data():
    wrong = []
    for name, tree in modules().items():
        for node, function, keywords in calls(tree):
            if function in ("eval", "exec", "compile", "torch.load", "yaml.load") or "allow_pickle" in keywords:
                wrong.append(f"{located(name, node)}: {function}")
    assert not wrong, wrong


SAMPLERS = [
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
    "rand_like",
    "randn_like",
    "randint_like",
]
IN_PLACE = ["normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "geometric_", "log_normal_"]
NUMPY_STREAMS = ["default_rng", "Generator", "RandomState", "SeedSequence", "PCG64"]


def test_randomness_comes_from_explicit_generators():
    wrong = []
    for name, tree in modules().items():
        for node, function, keywords in calls(tree):
            owner, _, last = function.rpartition(".")
            bad = owner in ("np.random", "numpy.random") and last not in NUMPY_STREAMS
            bad |= last in NUMPY_STREAMS and not node.args and not node.keywords
            bad |= owner == "torch" and last in SAMPLERS and "generator" not in keywords
            bad |= last in IN_PLACE and "generator" not in keywords
            bad |= function in ("torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.cuda.manual_seed")
            if bad:
                wrong.append(f"{located(name, node)}: {function}")
    assert not wrong, wrong


def test_no_loose_ends():
    wrong = []
    for path in (ROOT / "rsdmri").rglob("*"):
        assert path.name != "utils.py"
        if path.suffix in (".py", ".html", ".toml"):
            found = re.search(r"\b(TODO|FIXME|XXX)\b|NotImplementedError|nan_to_num", path.read_text(encoding="utf-8"))
            wrong += [f"{path.name}: {found.group()}"] if found else []
    for name, tree in modules().items():
        wrong += [f"{located(name, n)}: assert" for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert not wrong, wrong


def test_files_and_functions_are_short():
    long = []
    for path in (ROOT / "rsdmri").rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        long += [f"{path.relative_to(ROOT)}: {lines} lines"] if lines > LONGEST_FILE else []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                long += [f"{located(name, node)}: {node.name} has {lines} lines"] if lines > LONGEST_FUNCTION else []
    assert not long, "split them:\n" + "\n".join(long)
