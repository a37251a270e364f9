"""Plain evaluation against the user's own module, masked by hooks."""

from __future__ import annotations

import torch
from prune_networks import masked, outputs
from sensitivity_case import Case, points

from paredown.pipeline.compress.sensitivity.plain import plain
from paredown.pipeline.compress.sensitivity.sensitivity import Point


def test_it_is_the_users_own_masked_module_one_image_at_a_time():
    case, ticks = Case(20), list[tuple[int, int]]()
    found = case.run(plain, tick=lambda done, total: ticks.append((done, total)))
    for (name, width), point in points(found).items():
        kept = {name: tuple(sorted(case.ranks[name][:width]))}
        module = masked(case.net, case.graph, case.groups, kept)
        each = [tuple(o.numpy() for o in outputs(module, torch.from_numpy(x[None]))) for x in case.x]
        assert (point.metric, point.low, point.high) == case.score(each)
    assert found.baseline.metric == 1.0 and found.images == 20 and found.metric == "top1"
    for curve in found.curves:
        assert [p.width for p in curve.points] == list(case.widths[curve.group])
        assert curve.points[0] == Point(curve.units, 1.0, found.baseline.low, found.baseline.high)
    assert ticks == [(20 * i, 20 * 29) for i in range(1, 30)]
