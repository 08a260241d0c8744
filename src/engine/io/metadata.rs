//! Keys under which our own facts stand in a file's metadata.

/// Fingerprint of the run: tells a finished file from one of other settings.
pub const RUN: &str = "triptych.run";
/// The step of an adapter that was kept before its run had ended.
pub const STEP: &str = "triptych.step";
pub const METHOD: &str = "triptych.method";
/// Identity of the shared basis, e.g. `slots v1 seed 0 block 8`.
pub const BASIS: &str = "triptych.basis";
pub const SLOT: &str = "triptych.slot";
/// The coarsest number format that parts of a merged file went through: `f16` or `bf16`.
pub const ROUNDED: &str = "triptych.rounded";
pub const TOKEN: &str = "triptych.token";
pub const CLASS: &str = "triptych.class";
/// Name and hash of the model it was trained on.
pub const BASE: &str = "triptych.base";
pub const BASE_HASH: &str = "triptych.base_hash";
/// Settings of method and training, or of a merge, as JSON.
pub const RECIPE: &str = "triptych.recipe";
/// Where an album of adapters stands, so that further ones can join.
pub const ALBUM: &str = "triptych.album";
/// Names of the tensors that only their method understands, separated by commas.
pub const OWN: &str = "triptych.own";
/// kohya's, in adapters whose captions were not read at the text encoder's last layer.
pub const CLIP_SKIP: &str = "ss_clip_skip";
/// Names of the classes that a classifier has learnt, as a JSON list in the order of its head's rows.
pub const CLASSES: &str = "triptych.classes";
