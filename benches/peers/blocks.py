"""The paper's way through a model of transformers: block by block, each calibrated on what the pruned ones before it hand on."""

import time

import torch


class Stop(Exception):
    """Ends a forward pass at the first block."""


def first_inputs(model, tokens):
    """What the first block of a LLaMA-like model is given for each sequence, and what else it is called with."""
    inputs, extra = [], {}

    def catch(module, args, kwargs):
        inputs.append(args[0] if args else kwargs.pop("hidden_states"))
        extra.update({key: value for key, value in kwargs.items() if key != "hidden_states"})
        raise Stop

    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for sequence in tokens:
        try:
            model(sequence[None], use_cache=False)
        except Stop:
            pass
    hook.remove()
    return inputs, extra


def prune_blocks(model, tokens, accumulate, solve):
    """Prunes every linear layer in place; seconds by stage.

    accumulate(linear, inputs) takes one sequence's inputs of a layer; solve(linear) is asked for its new weights afterwards.
    """
    model.eval()
    seconds = dict.fromkeys(["forward", "hessian", "solve", "second forward"], 0.0)
    start = time.perf_counter()
    inputs, extra = first_inputs(model, tokens)

    def forward(block):
        outputs = [block(hidden, **extra) for hidden in inputs]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]

    def timed(linear, args, output):
        began = time.perf_counter()
        accumulate(linear, args[0])
        seconds["hessian"] += time.perf_counter() - began

    for block in model.model.layers:
        linears = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
        hooks = [linear.register_forward_hook(timed) for linear in linears]
        began, before = time.perf_counter(), seconds["hessian"]
        forward(block)
        seconds["forward"] += time.perf_counter() - began - (seconds["hessian"] - before)
        for hook in hooks:
            hook.remove()
        began = time.perf_counter()
        for linear in linears:
            linear.weight.data = solve(linear)
        seconds["solve"] += time.perf_counter() - began
        began = time.perf_counter()
        inputs = forward(block)
        seconds["second forward"] += time.perf_counter() - began
    seconds["total"] = time.perf_counter() - start
    return seconds
