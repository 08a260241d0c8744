//! A slice that several threads write, each its own parts, where these do not lie in one piece.

use std::marker::PhantomData;

pub struct Disjoint<'a> {
    start: *mut f32,
    len: usize,
    whole: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "threads write columns of rows that interleave, which no safe split of a slice can say")]
// SAFETY: it is a mutable slice, whose parts are handed out under the promise of `part`.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    pub fn new(whole: &'a mut [f32]) -> Self {
        Self { start: whole.as_mut_ptr(), len: whole.len(), whole: PhantomData }
    }

    /// `len` numbers from `at` on.
    ///
    /// # Safety
    /// No other part that is alive may overlap it.
    #[expect(unsafe_code, reason = "see the type")]
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at + len <= self.len, "a part of {len} at {at} of {}", self.len);
        // SAFETY: it lies within the slice that is borrowed for as long as `self`, and is disjoint from all others.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
