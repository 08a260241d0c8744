//! Where what can be computed again is kept.

use std::path::PathBuf;

/// None where the system names no such place.
pub fn folder() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("triptych"))
}
