//! Stored numbers → f32 or f16, on all cores, in one pass that also tells whether they are numbers.

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Values that a thread takes at a time. 64 Ki fill 256 KiB: they are still in the cache of their core when they are
/// looked through for NaN.
const SHARE: usize = 1 << 16;
/// Halves that are converted together, in registers' widths, from a buffer that is aligned as files need not be.
const BLOCK: usize = 512;

/// Values of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers<T = f32> {
    pub values: Vec<T>,
    /// Whether none of them is NaN or infinite.
    pub finite: bool,
}

/// `bytes`, little-endian, as f32. `None` for types that do not hold numbers of a network.
pub fn numbers(dtype: Dtype, bytes: &[u8]) -> Option<Numbers> {
    let decode: fn(&[u8], &mut [f32]) = match dtype {
        Dtype::F16 => |bytes, out| halves(bytes, out, f16::from_le_bytes),
        Dtype::BF16 => |bytes, out| halves(bytes, out, bf16::from_le_bytes),
        Dtype::F32 => |bytes, out| each(bytes, out, f32::from_le_bytes),
        Dtype::F64 => |bytes, out| each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::I64 => |bytes, out| each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => |bytes, out| each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        _ => return None,
    };
    Some(in_shares(bytes, dtype.bitsize() / 8, decode, f32::is_finite))
}

/// `bytes` of f16 as they are.
pub fn f16s(bytes: &[u8]) -> Numbers<f16> {
    in_shares(bytes, size_of::<f16>(), |bytes, out| each(bytes, out, f16::from_le_bytes), f16::is_finite)
}

fn in_shares<T: Copy + Default + Send>(
    bytes: &[u8],
    width: usize,
    decode: fn(&[u8], &mut [T]),
    is_finite: impl Fn(T) -> bool + Sync,
) -> Numbers<T> {
    let mut values = vec![T::default(); bytes.len() / width];
    let share = |(out, bytes): (&mut [T], &[u8])| {
        decode(bytes, out);
        out.iter().fold(true, |finite, &x| finite & is_finite(x))
    };
    let finite = match values.len() > SHARE {
        true => {
            values.par_chunks_mut(SHARE).zip(bytes.par_chunks(SHARE * width)).map(share).reduce(|| true, |a, b| a & b)
        }
        false => share((&mut values, bytes)),
    };
    Numbers { values, finite }
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], value: impl Fn([u8; N]) -> T) {
    out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, &bytes)| *out = value(bytes));
}

/// One by one, each conversion would ask the processor anew whether it can convert halves.
fn halves<H: Copy + Default>(bytes: &[u8], out: &mut [f32], half: impl Fn([u8; 2]) -> H)
where
    [H]: half::slice::HalfFloatSliceExt,
{
    let mut block = [H::default(); BLOCK];
    for (bytes, out) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
        let block = &mut block[..out.len()];
        block.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, &bytes)| *value = half(bytes));
        block.convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every half there is, more than one share of them and no whole number of blocks, against the conversion one by one.
    #[test]
    fn all_halves_become_the_values_they_stand_for() {
        let bits: Vec<u16> = (0..=u16::MAX).chain(0..777).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        let same = |found: &[f32], expected: &dyn Fn(u16) -> f32| {
            let mut pairs = found.iter().zip(&bits);
            found.len() == bits.len()
                && pairs.all(|(x, &b)| x.to_bits() == expected(b).to_bits() || x.is_nan() && expected(b).is_nan())
        };
        let f16s = numbers(Dtype::F16, &bytes).unwrap();
        assert!(same(&f16s.values, &|b| f16::from_bits(b).to_f32()) && !f16s.finite);
        let kept = super::f16s(&bytes);
        assert!(kept.values.iter().map(|x| x.to_bits()).eq(bits.iter().copied()) && !kept.finite);
        assert!(super::f16s(&bytes[..2 * 0x7c00]).finite, "all below infinity");
        let bf16s = numbers(Dtype::BF16, &bytes).unwrap();
        assert!(same(&bf16s.values, &|b| bf16::from_bits(b).to_f32()) && !bf16s.finite);
    }

    #[test]
    fn one_bad_number_anywhere_is_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, SHARE - 1, SHARE, 2 * SHARE + 4] {
                let mut values = vec![1.5_f32; 2 * SHARE + 5];
                let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
                assert_eq!(
                    numbers(Dtype::F32, &bytes(&values)),
                    Some(Numbers { values: values.clone(), finite: true })
                );
                values[at] = bad;
                assert!(!numbers(Dtype::F32, &bytes(&values)).unwrap().finite, "{bad} at {at}");
            }
        }
        // f64 that f32 cannot hold.
        assert!(!numbers(Dtype::F64, &1e300_f64.to_le_bytes()).unwrap().finite);
        assert_eq!(numbers(Dtype::I64, &(-7_i64).to_le_bytes()).unwrap().values, [-7.0]);
        assert_eq!(numbers(Dtype::U8, &[1, 2]), None);
    }
}
