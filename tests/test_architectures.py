"""What every architecture of a generator must do; and nobody outside `engine/models/` asks which it is."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import wrangan_cli
from tests.architectures import CLOSE, CONFIGS, a_model, every, network, w_of
from tests.conftest import TINY
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.architectures import ARCHITECTURES, config_record, read_generator_config
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import CONFIG, save_model
from wrangan_cli.engine.models.generator import (
    GeneratorConfig,
    parse_random_layers,
    random_names,
    read_random_layers,
)
from wrangan_cli.engine.models.randomized import (
    draw_epsilon,
    num_randomized,
    parametrise_std,
    randomize,
    with_plain_std,
)
from wrangan_cli.engine.models.rendering import active_noise, synthesize


def test_there_is_a_case_of_each_architecture() -> None:
    assert {config.architecture for config in CONFIGS} == set(ARCHITECTURES)


@every
def test_settings_survive_json(config: GeneratorConfig) -> None:
    record = json.loads(json.dumps(config_record(config)))
    assert record["architecture"] == config.architecture
    again = read_generator_config(record)
    assert again == config
    assert type(again) is type(config)
    for wrong in (True, "conv1", 1.0, [1], ["conv9"], 99, -1, None):
        record["generator"]["randomized_layers"] = wrong
        with pytest.raises((TypeError, ValueError), match="randomized_layers"):
            read_generator_config(record)


@every
def test_weights_and_noise_are_those_of_the_state_dict(config: GeneratorConfig) -> None:
    generator = network(config)
    state, weights = generator.state_dict(), generator.weights()
    for name, weight in weights.items():
        mean = state[f"{weight.key}.weight"]
        assert mean.data_ptr() == weight.mean.data_ptr()
        assert mean.numel() == weight.shape.numel()
        assert len(weight.shape) == 4
        assert weight.shape[2] == weight.shape[3] in (1, 3)
        assert f"{name}.".startswith(f"{weight.layer}.")
        assert 0 <= weight.row < config.num_latents
        assert weight.side <= config.resolution
        assert (weight.std is None) == (f"{weight.key}.std" not in state)
        assert weight.std is None or weight.std.shape == weight.shape
    rows = [weight.row for weight in weights.values()]
    assert rows == sorted(rows)
    layers = {name: weight.layer for name, weight in weights.items()}
    assert generator.random_weights().keys() == random_names(config.randomized_layers, layers)
    assert num_randomized(generator) == sum(
        tensor.numel() for name, tensor in state.items() if name.endswith(".std")
    )
    inputs = generator.noise_inputs()
    assert list(inputs) == [str(number) for number in range(len(inputs))]
    for given in inputs.values():
        assert given.layer in generator.layer_names()
        assert state[given.strength_key].data_ptr() == given.strength.data_ptr()
        assert given.map.shape == (1, 1, given.map.shape[-1], given.map.shape[-1])
        assert any(given.map.data_ptr() == tensor.data_ptr() for tensor in state.values())


@every
def test_epsilon_and_delta_are_offsets_of_the_weights(config: GeneratorConfig) -> None:
    generator = network(config)
    w, mean = w_of(generator), None
    mean = generator.synthesis(w)
    assert mean.shape == (2, config.image_channels, config.resolution, config.resolution)
    epsilon = draw_epsilon(generator)
    assert {name: value.shape for name, value in epsilon.items()} == {
        name: weight.shape for name, weight in generator.random_weights().items()
    }
    none = {name: torch.zeros_like(value) for name, value in epsilon.items()}
    torch.testing.assert_close(generator.synthesis(w, epsilon=none), mean, **CLOSE)
    for name, weight in generator.weights().items():
        delta = torch.randn(weight.shape) * 0.1
        changed = copy.deepcopy(generator)
        changed.weights()[name].mean.add_(delta)
        image = generator.synthesis(w, delta={name: delta})
        torch.testing.assert_close(image, changed.synthesis(w), **CLOSE)
        assert not torch.allclose(image, mean, atol=1e-4), name
        if weight.std is None:
            with pytest.raises(ValueError, match="no σ"):
                generator.synthesis(w, epsilon={name: delta})
            continue
        one = generator.synthesis(w, epsilon={name: epsilon[name]})
        torch.testing.assert_close(
            one, generator.synthesis(w, delta={name: weight.std * epsilon[name]}), **CLOSE
        )


@every
def test_offsets_for_each_image(config: GeneratorConfig) -> None:
    generator = network(config)
    w, epsilon = w_of(generator, 3), draw_epsilon(generator)
    delta = {name: torch.randn(weight.shape) * 0.1 for name, weight in generator.weights().items()}
    shared = generator.synthesis(w, epsilon=epsilon, delta=delta)
    repeated = {name: value[None].expand(3, *value.shape) for name, value in epsilon.items()}
    torch.testing.assert_close(generator.synthesis(w, epsilon=repeated, delta=delta), shared, **CLOSE)
    each = draw_epsilon(generator, 3)
    together = generator.synthesis(w, epsilon=each)
    for row in range(3):
        alone = generator.synthesis(w[row : row + 1], epsilon={n: v[row] for n, v in each.items()})
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
    assert not torch.allclose(together, shared, atol=1e-3)


@every
def test_w_is_one_row_for_all_layers(config: GeneratorConfig) -> None:
    generator = network(config)
    w = w_of(generator)
    rows = w[:, None].repeat(1, config.num_latents, 1).requires_grad_(True)
    images = generator.synthesis(rows)
    torch.testing.assert_close(images, generator.synthesis(w), **CLOSE)
    (gradient,) = torch.autograd.grad(images.square().sum(), rows)
    for weight in generator.weights().values():
        assert gradient[:, weight.row].abs().min(dim=1).values.max() > 0
    for shape in ((2, config.style_dim + 1), (2, config.num_latents + 1, config.style_dim)):
        with pytest.raises(ValueError, match="w has shape"):
            generator.synthesis(torch.zeros(shape))


@every
def test_noise(config: GeneratorConfig) -> None:
    generator = network(config)
    w, inputs = w_of(generator), generator.noise_inputs()
    stored = generator.synthesis(w)
    maps = [given.map for given in inputs.values()]
    torch.testing.assert_close(generator.synthesis(w, noise=maps), stored, **CLOSE)
    repeated = [value.repeat(2, 1, 1, 1) for value in maps]
    torch.testing.assert_close(generator.synthesis(w, noise=repeated), stored, **CLOSE)
    fresh = generator.synthesis(w, noise="random")
    assert not torch.allclose(fresh, stored, atol=1e-3)
    for number, given in inputs.items():
        moved = {number: torch.randn(2, *given.map.shape[2:])}
        assert not torch.allclose(synthesize(generator, w, noise=moved), stored, atol=1e-4), number
    assert active_noise(generator).keys() == inputs.keys()
    silent = generator.synthesis(w, noise="none")
    for given in inputs.values():
        given.strength.zero_()
    assert not active_noise(generator)
    torch.testing.assert_close(generator.synthesis(w), silent, **CLOSE)


@every
def test_gradients_reach_every_offset(config: GeneratorConfig) -> None:
    generator = network(config)
    free = [value.requires_grad_() for value in draw_epsilon(generator, 2).values()]
    epsilon = dict(zip(generator.random_weights(), free, strict=True))
    image = generator.synthesis(w_of(generator), epsilon=epsilon)
    for gradient in torch.autograd.grad(image.square().mean(), free):
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).norm(dim=1) > 0).all()


@every
def test_synthesis_parameters_are_what_an_image_depends_on(config: GeneratorConfig) -> None:
    generator = network(config).requires_grad_(True)
    w = torch.randn(1, config.style_dim)
    names, parameters = zip(*generator.named_parameters(), strict=True)
    found = torch.autograd.grad(generator.synthesis(w).square().sum(), parameters, allow_unused=True)
    used = {name for name, gradient in zip(names, found, strict=True) if gradient is not None}
    assert used == set(generator.synthesis_parameters())
    assert {given.strength_key for given in generator.noise_inputs().values()} <= used


@every
def test_parameters_for_each_image(config: GeneratorConfig) -> None:
    generator = network(config)
    w = w_of(generator)
    moved = {n: torch.randn(2, *p.shape) * 0.05 for n, p in generator.synthesis_parameters().items()}
    with generator.cached_weights():
        images = synthesize(generator, w, parameters=moved)
        small = synthesize(generator, w, parameters=moved, side=4)
    for row in range(2):
        changed = copy.deepcopy(generator)
        for name, offset in moved.items():
            changed.get_parameter(name).add_(offset[row])
        torch.testing.assert_close(images[row : row + 1], changed.synthesis(w[row : row + 1]), **CLOSE)
    torch.testing.assert_close(small, F.interpolate(images, size=(4, 4), mode="area"), **CLOSE)


@every
def test_what_frozen_keeps_changes_nothing(config: GeneratorConfig) -> None:
    generator = network(config)
    w, epsilon = w_of(generator), draw_epsilon(generator, 2)
    before = generator.synthesis(w), generator.synthesis(w, epsilon=epsilon)
    with generator.cached_weights(), generator.cached_weights():
        torch.testing.assert_close(generator.synthesis(w), before[0], **CLOSE)
        torch.testing.assert_close(generator.synthesis(w, epsilon=epsilon), before[1], **CLOSE)
    assert torch.equal(generator.synthesis(w), before[0])


@every
def test_side(config: GeneratorConfig) -> None:
    generator = network(config)
    w, epsilon = w_of(generator), draw_epsilon(generator, 2)
    whole = generator.synthesis(w, epsilon=epsilon)
    for side in (4, 6, 8, 12):
        wanted = F.interpolate(whole, size=(side, side), mode="area")
        torch.testing.assert_close(generator.synthesis(w, epsilon=epsilon, side=side), wanted, **CLOSE)
        torch.testing.assert_close(synthesize(generator, w, epsilon=epsilon, side=side), wanted, **CLOSE)
    for side in (config.resolution, 2 * config.resolution):
        torch.testing.assert_close(generator.synthesis(w, epsilon=epsilon, side=side), whole, **CLOSE)


@every
def test_precision(config: GeneratorConfig) -> None:
    generator = network(config)
    w = w_of(generator)
    before = generator.synthesis(w)
    generator.set_precision("float32", 4)
    generator.set_precision("bf16", 0)
    assert torch.equal(generator.synthesis(w), before)
    try:
        generator.set_precision("bf16", 1)
    except UsageError:
        return
    after = generator.synthesis(w)
    assert after.dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()


@every
def test_model_round_trip(config: GeneratorConfig, tmp_path: Path) -> None:
    generator = network(config)
    folder = save_model(tmp_path / "m", generator)
    assert json.loads((folder / CONFIG).read_text())["architecture"] == config.architecture
    again = load_model(str(folder))
    assert again.generator.config == config
    assert type(again.generator) is type(generator)
    w, epsilon = w_of(generator), draw_epsilon(generator)
    assert torch.equal(again.generator.synthesis(w, epsilon=epsilon), generator.synthesis(w, epsilon=epsilon))


@every
def test_code_round_trip(config: GeneratorConfig, tmp_path: Path) -> None:
    model = a_model(config, tmp_path)
    generator, info = model.generator, {"model": model.name, "model_sha256": model.sha256}
    noise = {n: torch.randn(i.map.shape[2:]).half() for n, i in generator.noise_inputs().items()}
    delta = {n: (torch.randn(w.shape) * 0.1).half() for n, w in generator.weights().items()}
    epsilon = {n: value.half() for n, value in draw_epsilon(generator).items()}
    tuned = {n: torch.full_like(p, 0.01).half() for n, p in generator.synthesis_parameters().items()}
    w = w_of(generator, 1)[0]
    for groups in ({"epsilon": epsilon, "delta": delta, "noise": noise}, {"parameters": tuned}):
        code = Code(w, info=info, **groups)
        save_code(tmp_path / "a.st", code)
        assert torch.equal(render(model, [load_code(tmp_path / "a.st", model)]), render(model, [code]))
        for kind, values in groups.items():
            name = next(iter(values))
            for wrong in ({"layers.99": values[name]}, {name: values[name][..., None]}):
                save_code(tmp_path / "b.st", Code(w, info=info, **{kind: wrong}))
                with pytest.raises(FileError, match="does not fit"):
                    load_code(tmp_path / "b.st", model)


@every
def test_every_weight_can_be_random(config: GeneratorConfig) -> None:
    generator = network(config)
    w = w_of(generator)
    for which in [0, len(generator.layer_names()), *[(name,) for name in generator.weights()]]:
        random = randomize(generator, which, 0.3)
        layers = {name: weight.layer for name, weight in generator.weights().items()}
        assert random.random_weights().keys() == random_names(which, layers)
        assert all((weight.std == 0.3).all() for weight in random.random_weights().values())
        torch.testing.assert_close(random.synthesis(w), generator.synthesis(w), **CLOSE)
    with pytest.raises(ValueError, match="randomized_layers"):
        randomize(generator, 99)


@every
def test_std_in_another_form_can_be_undone(config: GeneratorConfig) -> None:
    generator = network(config)
    w, epsilon = w_of(generator), draw_epsilon(generator)
    before, names = generator.synthesis(w, epsilon=epsilon), set(generator.state_dict())
    tuned = set(generator.synthesis_parameters())
    parametrise_std(generator, "softplus")
    assert set(generator.synthesis_parameters()) == tuned
    plain = with_plain_std(generator)
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(plain.synthesis(w, epsilon=epsilon), before, **CLOSE)
    assert set(randomize(generator, config.randomized_layers).state_dict()) == names


@every
def test_layers_as_text(config: GeneratorConfig) -> None:
    generator = network(config)
    names = generator.layer_names()
    assert parse_random_layers("2", generator) == 2
    assert parse_random_layers(f"{names[-1]}, {names[0]}", generator) == (names[-1], names[0])
    weight = list(generator.weights())[-1]
    assert parse_random_layers(weight, generator) == (weight,)
    stem = re.match(r"\w+\.", names[-1])
    assert stem is not None
    numbered = [name for name in names if name.startswith(stem[0])]
    first = [name for name in numbered if name.startswith(f"{stem[0]}0")]
    assert parse_random_layers(f"{stem[0]}0-9", generator) == tuple(numbered)
    assert parse_random_layers("0-0", generator) == tuple(first)
    for wrong in ("99", "conv9", "7-9", "", "conv1,", "9-1"):
        with pytest.raises(UsageError, match="layers"):
            parse_random_layers(wrong, generator)


def test_names_or_a_number() -> None:
    assert read_random_layers(3) == 3
    assert read_random_layers(["a", "b"]) == ("a", "b")
    weights = {"a.x": "a", "a.y": "a", "b.1.x": "b.1", "b.10.x": "b.10"}
    assert random_names(2, weights) == {"b.1.x", "b.10.x"}
    assert random_names(("b.1",), weights) == {"b.1.x"}
    assert random_names(("b", "a.y"), weights) == {"a.y", "b.1.x", "b.10.x"}


def test_a_record_without_architecture_is_stylegan2() -> None:
    assert read_generator_config({"generator": TINY.to_json()}) == TINY


@pytest.mark.parametrize("name", ["swagan", 3, None])
def test_unknown_architecture(name: object, tiny_folder: Path) -> None:
    record = json.loads((tiny_folder / CONFIG).read_text())
    (tiny_folder / CONFIG).write_text(json.dumps({**record, "architecture": name}))
    with pytest.raises(FileError, match=f"unknown architecture {name!r}: known are stylegan2, ") as caught:
        load_model(str(tiny_folder))
    assert "\n" not in str(caught.value)


PACKAGE = Path(wrangan_cli.__file__).parent
MODELS = PACKAGE / "engine" / "models"
CONCRETE = ("stylegan2", "mobile_stylegan", "config")
"""Modules of one architecture."""
ALLOWED = ("engine/checkpoints/", "engine/diagnosis.py", "engine/training/start.py")
"""Who may name StyleGAN2: its files of other projects, the self-test, and `train generator`."""
OWN = {*(f"{name}.py" for name in CONCRETE), "architectures.py", "discriminator.py", "precision.py"}


def shared_sources() -> dict[str, str]:
    files = [path for path in PACKAGE.rglob("*.py") if path.parent != MODELS or path.name not in OWN]
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in files}
    return {name: text for name, text in sources.items() if not name.startswith(ALLOWED)}


def test_nobody_else_names_an_architecture() -> None:
    modules = {Path(path.__module__.replace(".", "/")).name for path, _ in ARCHITECTURES.values()}
    assert modules <= set(CONCRETE)
    importing = re.compile(rf"models(\.| import .*\b)({'|'.join(CONCRETE)})\b")
    inner = re.compile(
        r"styled_convs|noise_side|num_styled_convs|noises\b|conv1\.conv|[\"'](style|convs?)\.(?!css)|\.conv\.(std|weight)"
        r"|isinstance\([^)]*(StyleGAN|Config\b)"
    )
    sources = shared_sources()
    assert len(sources) > 80
    for name, text in sources.items():
        assert not importing.search(text), name
        found = inner.search(text)
        assert found is None, f"{name}: {found and found[0]}"
