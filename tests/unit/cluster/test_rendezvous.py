"""What would keep the connections of a round of trainers open after it has ended."""

import inspect

import torch.distributed.nn.functional as functional

from headrace.cluster.rendezvous import Rendezvous


def test_no_function_holds_a_process_group_as_a_default() -> None:
    # torch's module takes the group that exists when it is imported; importing Rendezvous has imported it before any.
    assert Rendezvous.__module__ == "headrace.cluster.rendezvous"
    held = {
        name: parameter.default
        for name, function in inspect.getmembers(functional, inspect.isfunction)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name == "group" and parameter.default is not None
    }
    assert held == {}
