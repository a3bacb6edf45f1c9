"""Images of seeds: truncation and ε."""

import pytest
import torch

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import randomize
from wrangan_cli.engine.models.seeds import image_of_seed


@torch.no_grad()
def test_an_image_is_that_of_its_latent(tiny_model: Model) -> None:
    generator = tiny_model.generator
    z = torch.randn(generator.config.style_dim, generator=random_generator(5))[None]
    w = generator.mapping(z)
    torch.testing.assert_close(image_of_seed(tiny_model, 5), generator.synthesis(w)[0])
    halfway = (w + tiny_model.w_mean) / 2
    torch.testing.assert_close(image_of_seed(tiny_model, 5, 0.5), generator.synthesis(halfway)[0])
    mean = generator.synthesis(tiny_model.w_mean[None])[0]
    torch.testing.assert_close(image_of_seed(tiny_model, 5, 0.0), mean)
    torch.testing.assert_close(image_of_seed(tiny_model, 6, 0.0), mean)


def test_epsilon_is_of_the_seed(tiny_model: Model) -> None:
    plain, moved = image_of_seed(tiny_model, 1), image_of_seed(tiny_model, 1, epsilon=1.0)
    assert not torch.allclose(plain, moved)
    assert torch.equal(moved, image_of_seed(tiny_model, 1, epsilon=1.0))
    bare = Model("bare", tiny_model.path, "", randomize(tiny_model.generator, 0), tiny_model.w_mean, 1.0, "")
    with pytest.raises(UsageError, match="random"):
        image_of_seed(bare, 1, epsilon=1.0)
