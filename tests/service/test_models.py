import numpy as np
import pytest
import torch
from safetensors.numpy import save

from app.domain import InputSpec, ModelState, Normalisation
from app.errors import InvalidInputSpec, InvalidName, InvalidRecipe, InvalidWeights, ModelExists
from app.learning.architectures import build
from app.learning.recipe import Mlp
from app.service import cycles, models, release
from tests.service.conftest import ACTOR, RECIPE, House


def test_create_describes_and_audits(house: House) -> None:
    house.create("gas")
    summary = models.describe_model(house.store, "gas")
    assert summary.model.input == InputSpec()
    assert summary.recipe.document["network"] == {"name": "mlp", "hidden": [16]}
    assert (summary.champion, summary.queued, summary.megabatches) == (None, 0, 0)
    assert house.kinds() == ["model.created"]


def test_same_again_returns_the_first_and_other_content_is_refused(house: House) -> None:
    house.create("gas")
    again, created = models.create_model(
        house.store, name="gas", recipe=RECIPE, input=InputSpec(), architectures=(), actor=ACTOR
    )
    assert (again.name, created) == ("gas", False)
    with pytest.raises(ModelExists, match="another name"):
        models.create_model(
            house.store, name="gas", recipe={"seed": 1}, input=InputSpec(), architectures=(), actor=ACTOR
        )
    assert house.kinds() == ["model.created"]


@pytest.mark.parametrize("name", ["", "Gas", "-gas", "a" * 64, "gas/1", "gas\0", "..", "gas sensors"])
def test_bad_names_are_refused(house: House, name: str) -> None:
    with pytest.raises(InvalidName, match="lower-case"):
        house.create(name)


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({"shape": ()}, "/shape"),
        ({"shape": (0,)}, "/shape"),
        ({"dtype": "float64"}, "/dtype"),
        ({"classes": ("a", "a")}, "/classes"),
        ({"classes": ("a",)}, "/classes"),
        ({"normalisation": Normalisation("fixed")}, "/normalisation/mean"),
        ({"shape": (3,), "normalisation": Normalisation("fixed", mean=(1.0,), std=(1.0,))}, "/normalisation/mean"),
        ({"normalisation": Normalisation("fixed", mean=(1.0,), std=(0.0,))}, "/normalisation/std"),
        ({"normalisation": Normalisation("none", mean=(1.0,), std=(1.0,))}, "/normalisation/mean"),
        ({"normalisation": Normalisation("none", clip=-1.0)}, "/normalisation/clip"),
    ],
)
def test_an_input_that_cannot_work_is_refused(house: House, spec: dict[str, object], pointer: str) -> None:
    with pytest.raises(InvalidInputSpec) as caught:
        house.create("gas", **spec)
    assert [p for p, _ in caught.value.errors] == [pointer]
    assert house.kinds(None) == []


def test_an_image_network_refuses_flat_examples(house: House) -> None:
    with pytest.raises(InvalidInputSpec, match="choose the network mlp"):
        house.create("gas", {"network": {"name": "cnn"}}, shape=(64,))


def test_an_unknown_architecture_is_refused_with_the_known_ones(house: House) -> None:
    with pytest.raises(InvalidRecipe, match="ESPALIER_ARCHITECTURES"):
        house.create("gas", {"network": {"name": "custom", "architecture": "mine"}})


def test_pause_and_resume_are_audited_once_and_waiting_data_gets_a_cycle(house: House) -> None:
    house.create("gas")
    models.pause_model(house.store, "gas", reason="line stopped", actor=ACTOR)
    models.pause_model(house.store, "gas", reason="line stopped", actor=ACTOR)
    house.upload()
    assert house.cycle() is None, "a paused model's cycles wait"
    model = models.resume_model(house.store, "gas", reason="line runs", actor=ACTOR)
    assert model.state is ModelState.ACTIVE
    assert len(cycles.list_cycles(house.store, "gas", after=None, limit=10).items) == 1, "the queued cycle is enough"
    ended = house.cycle()
    assert ended is not None
    assert ended.version == 1
    assert house.kinds().count("model.paused") == 1


@pytest.mark.parametrize("trigger", [{"name": "manual"}, {"name": "megabatches", "every": 5}])
def test_resuming_hurries_nothing(house: House, trigger: dict[str, object]) -> None:
    house.create("gas", {**RECIPE, "trigger": trigger})
    house.upload()
    models.pause_model(house.store, "gas", reason="stop", actor=ACTOR)
    models.resume_model(house.store, "gas", reason="go", actor=ACTOR)
    assert house.cycle() is None


def test_resuming_does_not_undo_a_rollback(house: House) -> None:
    house.create()
    house.grow(2)
    release.roll_back(
        house.store, "gas", to="1", reason="bad data", quarantine=(), expected_revision=house.revision(), actor=ACTOR
    )
    models.pause_model(house.store, "gas", reason="stop", actor=ACTOR)
    models.resume_model(house.store, "gas", reason="go", actor=ACTOR)
    assert house.cycle() is None
    assert house.champion().number == 1


def keep(house: House, data: bytes) -> models.InitialWeights:
    with house.store.blobs.receiver(2**20) as receiver:
        receiver.write(data)
        return models.keep_initial_weights(house.store, receiver.finish())


def network_weights(hidden: int = 16) -> dict[str, np.ndarray]:
    """Weights under the names that the network itself uses."""
    network = build(Mlp(hidden=(hidden,)), (8,), 3)
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=tuple(value.shape)).astype(np.float32) for name, value in network.state_dict().items()
    }


SPEC = {"shape": (8,), "dtype": "float32", "classes": ("a", "b", "c")}


def test_initial_weights_become_version_0(house: House) -> None:
    kept = keep(house, save(network_weights()))
    house.create("gas", {**RECIPE, "initial_weights": kept.digest}, **SPEC)
    ended = house.cycle()
    assert ended is not None
    assert ended.version == 0
    champion = house.champion()
    assert (champion.number, champion.stage, champion.density) == (0, 0, 1.0)
    house.upload()
    house.cycle()
    assert (house.champion().number, house.champion().parent, house.champion().stage) == (1, 0, 1)


def test_initial_weights_that_do_not_fit_pause_the_model_with_the_reason(house: House) -> None:
    kept = keep(house, save(network_weights(hidden=4)))
    house.create("gas", {**RECIPE, "initial_weights": kept.digest}, **SPEC)
    ended = house.cycle()
    assert ended is not None
    assert ended.state == "failed"
    summary = models.describe_model(house.store, "gas")
    assert summary.model.state is ModelState.PAUSED
    assert "shape" in str(summary.model.paused_reason)


def test_version_0_comes_first_even_when_data_came_while_it_could_not_be_made(house: House) -> None:
    kept = keep(house, save(sequential_weights()))
    mine = {"name": "custom", "architecture": "mine"}
    house.settings = house.settings.model_copy(update={"architectures": {"mine": "nowhere:factory"}})
    house.create("gas", {**RECIPE, "network": mine, "initial_weights": kept.digest}, **SPEC)
    ended = house.cycle()
    assert ended is not None
    assert ended.state == "failed"
    house.upload()
    house.settings = house.settings.model_copy(
        update={"architectures": {"mine": "tests.service.test_models:sequential"}}
    )
    models.resume_model(house.store, "gas", reason="module installed", actor=ACTOR)
    assert [cycle.version for cycle in iter(house.cycle, None) if cycle] == [0, 1]
    assert house.champion().parent == 0


def sequential(input_shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """A user's factory."""
    return torch.nn.Sequential(torch.nn.Linear(input_shape[0], 12), torch.nn.ReLU(), torch.nn.Linear(12, classes))


def sequential_weights() -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in sequential((8,), 3).state_dict().items()}


def test_initial_weights_must_be_here_and_be_safetensors(house: House) -> None:
    with pytest.raises(InvalidRecipe, match="initial-weights"):
        house.create("gas", {**RECIPE, "initial_weights": "sha256:" + "0" * 64}, **SPEC)
    with pytest.raises(InvalidWeights):
        keep(house, b"PK\x03\x04 no safetensors")
