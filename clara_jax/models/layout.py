"""How arrays inside a computation are sharded, for the few places where XLA must be told."""

import dataclasses
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and the mesh axes over which logical axes such as `batch` and `heads` are sharded."""

    mesh: Mesh | None = None  # None: one device, and nothing is constrained
    axes: tuple[tuple[str, MeshAxes], ...] = ()  # pairs of a logical axis and its mesh axes

    def spec(self, shape: tuple[int, ...], *logical: str | None) -> PartitionSpec:
        """Mesh axes of an array's axes; those that its shape does not divide by are left out."""
        return PartitionSpec(
            *(
                self._mesh_axes(name) if name and size % self.parts(name) == 0 else None
                for size, name in zip(shape, logical, strict=True)
            )
        )

    def parts(self, name: str) -> int:
        """Into how many parts a logical axis is cut."""
        if self.mesh is None:
            return 1
        axes = self._mesh_axes(name)
        return math.prod(self.mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes))

    def constrain(self, x: jax.Array, *logical: str | None) -> jax.Array:
        """The same array, laid out so; axes named None are whole on every device."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        sharding = NamedSharding(self.mesh, self.spec(x.shape, *logical))
        return jax.lax.with_sharding_constraint(x, sharding)

    @property
    def platform(self) -> str:
        """Of the devices: cpu, gpu or tpu."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    def _mesh_axes(self, name: str) -> MeshAxes:
        return dict(self.axes)[name] if self.axes else ()
