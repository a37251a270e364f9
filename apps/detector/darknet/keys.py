"""Every key of a .cfg that darknet knows, by section: computed, refused unless it does nothing, or ignored.

A key that is in none of the three lists is refused as well: what nobody read must not be accepted in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from paredown.apps.detector.darknet.text import Section
from paredown.targets.errors import InputError


@dataclass(frozen=True)
class Keys:
    """The keys of one section.

    Attributes:
        reads: with spaces between them; the parser computes with them.
        refused: key -> the values with which it changes nothing; with another one it changes results in a way
            that is not computed here.
        trains: with spaces between them; they matter in training only, or say how darknet's own program runs.
    """

    reads: str = ""
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trains: str = ""

    @property
    def computed(self) -> frozenset[str]:
        """The keys that decide what is computed."""
        return frozenset(self.reads.split())

    @property
    def training(self) -> frozenset[str]:
        """The keys that are of no matter here."""
        return frozenset(self.trains.split())


#: In any section: what is trained, and how.
_ANYWHERE = (
    "clip onlyforward dont_update burnin_update stopbackward train_only_bn learning_rate "
    "learning_rate_scale truth smooth stream wait_stream"
)
#: In any section: layers whose weights are not in the file.
_UNREAD: dict[str, tuple[str, ...]] = {
    "dontload": ("0",), "dontsave": ("0",), "dontloadscales": ("0",), "numload": ("0",),
}  # fmt: skip
_STRIDES: dict[str, tuple[str, ...]] = {"stride_x": (), "stride_y": (), "antialiasing": ("0",)}

KEYS: dict[str, Keys] = {
    "net": Keys(
        "width height channels letter_box",
        {"inputs": ()},
        (
            "batch subdivisions time_steps track augment_speed sequential_subdivisions try_fix_nan "
            "momentum weights_reject_freq equidistant_point badlabels_rejection_percentage "
            "num_sigmas_reject_badlabels ema_alpha use_cuda_graph loss_scale dynamic_minibatch "
            "optimized_memory workspace_size_limit_MB adam B1 B2 eps max_crop min_crop max_ratio "
            "min_ratio center flip hflip blur gaussian_noise mixup cutmix mosaic mosaic_bound contrastive "
            "contrastive_jit_flip contrastive_color unsupervised decay label_smooth_eps resize_step "
            "attention adversarial_lr max_chart_loss angle aspect saturation exposure hue power policy "
            "burn_in step scale steps scales seq_scales gamma max_batches max_epochs learning_rate "
            "learning_rate_min sgdr_cycle sgdr_mult show_receptive_field seen random notruth"
        ),
    ),
    "convolutional": Keys(
        "filters size stride pad padding groups batch_normalize cbn activation",
        {
            "binary": ("0",), "xnor": ("0",), "bin_output": ("0",), "dilation": ("1",), "flipped": ("0",),
            "share_index": (), "sway": ("0",), "rotate": ("0",), "stretch": ("0",), "stretch_sway": ("0",),
            "coordconv": ("0",), **_STRIDES,
        },
        "assisted_excitation dot angle grad_centr reverse",
    ),
    "maxpool": Keys(
        "size stride padding",
        {"maxpool_depth": ("0",), "out_channels": ("1",), "maxpool_zero_nonmax": ("0",), **_STRIDES},
    ),
    "route": Keys("layers groups group_id"),
    "shortcut": Keys(
        "from activation",
        {"weights_type": ("none",), "weights_normalization": ("none",), "alpha": ("1",), "beta": ("1",)},
    ),
    "upsample": Keys("stride", {"scale": ("1", "1.0", "1.")}),
    "reorg": Keys("stride", {"reverse": ("0",), "flatten": ("0",), "extra": ("0",)}),
    "avgpool": Keys(),
    "crop": Keys("crop_height crop_width noadjust", trains="flip angle saturation exposure shift"),
    "softmax": Keys("groups temperature", {"tree": (), "spatial": ("0", "0.0")}, "noloss"),
    "cost": Keys(trains="type scale ratio"),
    "dropout": Keys(trains="probability dropblock dropblock_size_rel dropblock_size_abs"),
    "region": Keys(
        "anchors num classes softmax object_scale noobject_scale class_scale coord_scale thresh rescore",
        {"coords": ("4",), "background": ("0",), "tree": (), "map": (), "log": ("0",), "sqrt": ("0",)},
        "max focal_loss jitter resize classfix absolute random mask_scale bias_match",
    ),
    "yolo": Keys(
        "anchors num mask classes scale_x_y new_coords nms_kind beta_nms",
        {"embedding_layer": ()},
        (
            "max show_details max_delta counters_per_class label_smooth_eps objectness_smooth "
            "iou_normalizer obj_normalizer cls_normalizer delta_normalizer uc_normalizer iou_loss "
            "iou_thresh_kind iou_thresh jitter resize focal_loss ignore_thresh truth_thresh random map "
            "beta1 track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm"
        ),
    ),
}  # fmt: skip


def check_keys(section: Section) -> None:
    """Refuses the keys of a section that change a result and are not computed, and those nobody knows.

    Raises:
        InputError: naming the key's line.
    """
    keys = KEYS[section.kind]
    refused = {**_UNREAD, **keys.refused}
    known = keys.computed | keys.training | refused.keys() | set(_ANYWHERE.split())
    for key, value in section.options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            read = ", ".join(sorted(keys.computed)) or "no key of this section"
            hint = f"did you mean {near[0]}?" if near else f"known and computed: {read}"
            raise InputError(f"unknown key {key[:40]} in [{section.kind}]", where=section.at(key), hint=hint)
        if key in refused and value not in refused[key]:
            trained = f"with {key}={refused[key][0]}" if refused[key] else f"without {key}"
            raise InputError(
                f"{key}={value[:40]} in [{section.kind}] is not supported, and it changes what is computed",
                where=section.at(key),
                hint=f"use a network that was trained {trained}",
            )
