"""Binds containers to function versions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.container import charges
from nanoagent.container.imports_reuse import ImportsReuse
from nanoagent.container.limits import set_limits
from nanoagent.model.errors import ContainerError
from nanoagent.supervisor.wire import ImportsState

if TYPE_CHECKING:
    from nanoagent.container.base import RunningContainer
    from nanoagent.container.policy import Binding, PooledContainer
    from nanoagent.container.pool_context import PoolContext

# For the imports of the largest libraries, while the container is prepared and no program runs.
_PREPARATION_BYTES: Final = 256 * MIB


class Binder:
    """Gives a container the code, the program and the limits of a function version.

    Args:
        context: The collaborators and the state that the parts of the pool share.
    """

    def __init__(self, context: PoolContext) -> None:
        self._driver = context.driver
        self._budget = context.budget
        self._changes = context.changes
        self._clock = context.clock
        self._imports = ImportsReuse(context.metrics, context.clock)

    async def bind(self, pooled: PooledContainer, binding: Binding) -> None:
        """Bind a container. If it was bound before, the old code and program are removed first.

        Raises:
            ContainerError: The container has died, its limits could not be set, or the preparation failed.
            PlatformError: The code could not be put into its work directory.
        """
        begun = self._clock()
        container = pooled.container
        if not pooled.is_generic:
            await container.work_directory.clear()
        pooled.key = binding.key
        await container.work_directory.put_code(binding.tree)
        if binding.byte_code is not None:
            await container.work_directory.put_byte_code(binding.byte_code)
        if binding.program is not None:
            await container.work_directory.put_program(binding.program)
        # Twice the size of the tree: in addition to the pages of a file, the kernel needs a structure for it.
        await self._set_limits(container, binding, slack_bytes=2 * binding.tree_bytes + _PREPARATION_BYTES)
        modules = await asyncio.to_thread(binding.find_modules)
        limits_changed = binding.memory_mb != container.spec.memory_mb
        await self._prepare(container, binding, modules, limits_changed=limits_changed)
        await self._measure(pooled, binding)
        pooled.bound_ms = (self._clock() - begun) * 1000

    async def _prepare(
        self,
        container: RunningContainer,
        binding: Binding,
        modules: tuple[str, ...],
        *,
        limits_changed: bool,
    ) -> None:
        if not binding.reuses_imports:
            await container.session.prepare(modules, limits_changed=limits_changed)
            return
        container.imports_refusal = self._imports.refusal(binding)
        tries = container.imports_refusal is ImportsState.OFF
        await container.session.prepare(modules, limits_changed=limits_changed, reuses_imports=tries)
        if tries:
            self._imports.note(binding, container.session.imports)

    async def _measure(self, pooled: PooledContainer, binding: Binding) -> None:
        """Measure the memory of a container after the copy of the code, and count it in the budget."""
        container = pooled.container
        if container.group is None:
            pooled.busy_mb = pooled.memory_mb
            return
        try:
            container.base_bytes = container.held_bytes = max(container.group.held_bytes(), 0)
            container.sandbox_bytes = 0
        except OSError as exc:
            raise ContainerError("the container died while it was bound") from exc
        await self._set_limits(container, binding, slack_bytes=container.base_bytes)
        # This may be more memory than the budget had free. Then the next job that needs memory evicts idle
        # containers.
        pooled.busy_mb = charges.busy_mb(binding.memory_mb, container.base_bytes)
        self._budget.resize(pooled, pooled.busy_mb)
        self._changes.notify()  # the budget may have more free memory than before

    async def _set_limits(self, container: RunningContainer, binding: Binding, *, slack_bytes: int) -> None:
        memory_bytes = binding.memory_mb * MIB + slack_bytes
        await set_limits(self._driver, container, memory_bytes, share=binding.cpus, most=binding.most_cpus)
