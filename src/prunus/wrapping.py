"""Networks that are wrapped for several processes or devices, or divided among them: pruned before, never after."""

from __future__ import annotations

from torch import nn

from prunus.errors import UnsupportedNetwork

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


def refuse_wrapped(model: nn.Module) -> None:
    """Raise `UnsupportedNetwork`, which says what to do, for a network in DDP, DataParallel or FSDP, or one that was divided.

    Wrapped is the network itself or a part of it. FSDP2 (`fully_shard`) and tensor parallelism leave the modules where they are
    and divide their parameters: each process has some rows of a weight, and so not all the channels that go together.
    """
    for path, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        found = next((name for name in _WRAPPERS if name in kinds), None)
        if found is not None:
            what, inside = (f"`{path}`", f"`{path}.module`") if path else ("the model", "`model.module`")
            whole = " gather its weights first, and" if found == "FullyShardedDataParallel" else ""
            raise UnsupportedNetwork(
                f"{what} is wrapped in {found}:{whole} prune the network inside ({inside}), then wrap the result again"
            )
        if "FSDPModule" in kinds:
            raise UnsupportedNetwork(f"{f'`{path}`' if path else 'the model'} went through fully_shard (FSDP2){_DIVIDED}")
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise UnsupportedNetwork(f"`{name}` is a DTensor{_DIVIDED}")


_DIVIDED = (
    ": its parameters are divided among processes, and none has all the channels that go together. Prune before that: "
    "`small, record = prunus.remove(network, graph, plan)` on the plain network in every process, then `fully_shard(small)` and "
    "a new optimizer. Of a network that exists only divided, get the weights with "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), load "
    "them into a plain one, and prune that"
)
