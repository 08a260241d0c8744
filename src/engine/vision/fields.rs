//! Settings of teaching a classifier, beside those of an adapter method.

use crate::engine::field::{Field, Kind};
use crate::engine::train::fields::{CLIP, DTYPE, SAVE_EVERY, SAVE_MINUTES};

pub const FIELDS: &[Field] = &[
    Field {
        name: "steps",
        title: "Steps",
        help: "How many times what is learnt is corrected",
        unit: "steps",
        default: "200",
        kind: Kind::Integer { min: 1, max: 10_000_000 },
    },
    Field {
        name: "batch",
        title: "Batch",
        help: "Pictures looked at in each step",
        unit: "pictures",
        default: "16",
        kind: Kind::Integer { min: 1, max: 1024 },
    },
    Field {
        name: "lr",
        title: "Learning rate",
        help: "How far each step moves head and adapter, falling along a cosine; 0 chooses by the method",
        unit: "",
        default: "0",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    },
    Field {
        name: "decay",
        title: "Weight decay",
        help: "Pull of head and adapter towards zero",
        unit: "",
        default: "0.01",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    },
    CLIP,
    Field {
        name: "held_out",
        title: "Held out",
        help: "Share of each class's pictures kept out of training, to measure accuracy on; at least one of each",
        unit: "",
        default: "0.2",
        kind: Kind::Number { min: 0.0, max: 0.9 },
    },
    Field {
        name: "flip",
        title: "Mirror",
        help: "Shows half of the pictures mirrored; turn off where left and right are different classes",
        unit: "",
        default: "true",
        kind: Kind::Flag,
    },
    Field {
        name: "targets",
        title: "Layers",
        help: "Which layers an adapter sits on: patterns such as *.query, separated by commas; empty takes what is usual for the network",
        unit: "",
        default: "",
        kind: Kind::Text,
    },
    Field {
        name: "validate_every",
        title: "Measure every",
        help: "Steps between measurements of the loss on the pictures kept out; 0 measures at the end alone",
        unit: "steps",
        default: "25",
        kind: Kind::Integer { min: 0, max: 1_000_000 },
    },
    SAVE_EVERY,
    SAVE_MINUTES,
    DTYPE,
];

/// Fields that decide what is told and kept on the way and change no number.
pub const OBSERVING: [&str; 3] = ["validate_every", "save_every", "save_minutes"];
