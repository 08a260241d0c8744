//! Matrix products on parts of slices (the `gemm` crate, which picks its kernel by what the CPU can do).

pub use gemm::Parallelism;

/// A matrix in a slice: from its first number on, and how far apart its rows and its columns are.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub values: &'a [f32],
    pub strides: [usize; 2],
}

/// What becomes of the numbers that are there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Replace,
    Add,
}

/// `a [m, k] · b [k, n]` into rows of `n` that are `stride` apart.
pub fn product(
    out: &mut [f32],
    stride: usize,
    [m, k, n]: [usize; 3],
    a: View<'_>,
    b: View<'_>,
    write: Write,
    threads: Parallelism,
) {
    if m * n == 0 {
        return;
    }
    if k == 0 {
        let rows = out.chunks_mut(stride).take(if write == Write::Replace { m } else { 0 });
        return rows.for_each(|row| row[..n].fill(0.0));
    }
    let end = |[rows, columns]: [usize; 2], [down, across]: [usize; 2]| (rows - 1) * down + (columns - 1) * across;
    assert!(n <= stride && out.len() > end([m, n], [stride, 1]), "the product of [{m}, {k}] and [{k}, {n}] fits");
    assert!(a.values.len() > end([m, k], a.strides) && b.values.len() > end([k, n], b.strides), "both have all rows");
    let [[a_down, a_across], [b_down, b_across]] = [a, b].map(|view| view.strides.map(|stride| stride as isize));
    #[expect(unsafe_code, reason = "the kernel takes pointers")]
    // SAFETY: every number that is read or written lies below the lengths that were just checked, and `out` is borrowed
    // for this call alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            write == Write::Add,
            a.values.as_ptr(),
            a_across,
            a_down,
            b.values.as_ptr(),
            b_across,
            b_down,
            1.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}
