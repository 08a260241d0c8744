//! Memory that is asked for again is not given back in between.
//!
//! A step makes and drops hundreds of tensors. glibc returns the larger ones to the system each time, which clears their
//! pages anew: a fifth of a guided step on six pictures.

/// Tensors beyond this size come from the system and go back to it: weights, and the activations of large pictures.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 32 << 20;
/// What may lie unused at the end of the heap before it goes back.
#[cfg(target_env = "gnu")]
const SPARE: i32 = 256 << 20;

/// For a whole program, at its start. Other systems' allocators are left as they are.
pub fn keep() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a call of the C library, on two numbers")]
    // SAFETY: mallopt changes nothing but the allocator's thresholds, and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, SPARE);
    }
}
