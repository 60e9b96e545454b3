# SPDX-License-Identifier: Apache-2.0
"""``transfer``: initial weights from another network, which may have other labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.units import listed

LEAST_FRAC = 0.1
"""Smallest fraction of the smaller body's weights that must be shared."""

NAMED = 5


@dataclass(frozen=True)
class Transfer:
    """Weights that a network took from another one, and weights that keep their initialisation.

    Parameters
    ----------
    taken : int
        Number of tensors of the body that were taken.
    fresh : tuple of str
        Names of tensors of the body that keep their initialisation.
    labels_taken, labels_fresh : tuple of str
        Names of labels whose rows of the head were taken, and of those that were not.
    """

    taken: int
    fresh: tuple[str, ...]
    labels_taken: tuple[str, ...]
    labels_fresh: tuple[str, ...]

    def describe(self) -> str:
        """Summary in one line, for the log.

        >>> Transfer(9, ("body.in.weight",), ("Background", "Skin"), ("Eye",)).describe()
        '9 of 10 tensors and 2 of 3 labels taken; new labels: Eye'
        """
        n_tensors = self.taken + len(self.fresh)
        n_labels = len(self.labels_taken) + len(self.labels_fresh)
        line = (
            f"{self.taken} of {n_tensors} tensors and "
            f"{len(self.labels_taken)} of {n_labels} labels taken"
        )
        if not self.labels_fresh:
            return line
        return f"{line}; new labels: {listed(self.labels_fresh, NAMED)}"


def transfer(
    net: PackedNet, table: LabelTable, source: PackedNet, source_table: LabelTable
) -> Transfer:
    """Copy all weights of ``source`` that fit into ``net``, in place.

    Tensors of the body are taken if name and shape agree; with another block size, the first
    layers are not. Rows of the head are taken by the name of the label (for background, by code
    0), if block size and number of features are the same.

    Parameters
    ----------
    net : PackedNet
        Network with initialised weights.
    source : PackedNet
        Network to take weights from.
    table, source_table : LabelTable
        Label tables of both networks; channels are in the order of codes.

    Raises
    ------
    ValueError
        If a table does not belong to its network, or (almost) no weight of the body fits. Then
        ``net`` is not changed.
    """
    _check_table(net, table)
    _check_table(source, source_table)
    own, theirs = _body(net), _body(source)
    fitting = [
        name
        for name, tensor in own.items()
        if name in theirs and theirs[name].shape == tensor.shape
    ]
    # Of the smaller one: a level more can hold most of the weights.
    share = sum(own[name].numel() for name in fitting) / min(_numel(own), _numel(theirs))
    if share < LEAST_FRAC:
        raise ValueError(
            f"the model to start from ({_described(source)}) shares {100 * share:.0f} % of its "
            f"weights with the network to train ({_described(net)}); choose its architecture and "
            "size, or start from nothing"
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(theirs[name])
        labels_taken = _take_head(net, table, source, source_table)
    return Transfer(
        taken=len(fitting),
        fresh=tuple(name for name in own if name not in set(fitting)),
        labels_taken=labels_taken,
        labels_fresh=tuple(label.name for label in table if label.name not in labels_taken),
    )


def _take_head(
    net: PackedNet, table: LabelTable, source: PackedNet, source_table: LabelTable
) -> tuple[str, ...]:
    """Copy the head's rows of labels that both tables name; gives their names."""
    if (net.spec.block_size, net.spec.features) != (source.spec.block_size, source.spec.features):
        return ()
    source_index = {_key(label): index for index, label in enumerate(source_table)}
    for of_net, of_source in [
        (net.head.get_parameter(name), source.head.get_parameter(name))
        for name in ("weight", "bias")
    ]:
        own = of_net.view(len(table), -1)
        theirs = of_source.view(len(source_table), -1)
        for index, label in enumerate(table):
            if _key(label) in source_index:
                own[index].copy_(theirs[source_index[_key(label)]])
    return tuple(label.name for label in table if _key(label) in source_index)


def _key(label: Label) -> str | int:
    """Name of a label; the background is code 0, whatever a table calls it."""
    return label.name if label.index else 0


def _body(net: PackedNet) -> dict[str, Tensor]:
    return {name: t for name, t in net.weights().items() if name.startswith("body.")}


def _numel(body: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in body.values())


def _check_table(net: PackedNet, table: LabelTable) -> None:
    if len(table) != net.spec.n_labels:
        raise ValueError(
            f"label table {table.name} has {len(table)} labels, but the network "
            f"{net.spec.architecture} says {net.spec.n_labels}"
        )


def _described(net: PackedNet) -> str:
    spec = net.spec
    options = ", ".join(f"{key} {value}" for key, value in spec.options.items())
    return f"{spec.architecture}, block size {spec.block_size}" + (
        f", {options}" if options else ""
    )
