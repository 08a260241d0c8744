//! Safetensors by memory map, tensor by tensor, and an ordered, atomic writer.
//!
//! Format: <https://github.com/huggingface/safetensors>. The writer is ours because the crate writes its metadata in
//! hash order, and a file here is a function of its content.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::engine::io::atomic;
use crate::engine::io::decode::{self, Numbers};
use crate::engine::io::pickle;
use crate::engine::{Error, Result};

pub use safetensors::Dtype;

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Of the checkpoint's files.
    file: usize,
    start: usize,
    end: usize,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
    /// Changed on the way.
    Made(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

/// Tensors of a safetensors file, of several, or of a part of one. Nothing is read before it is asked for.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Arc<Bytes>>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Reads the header and checks it against the file's length.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, &e))?;
        if file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(Error::new("This is a folder, not a safetensors file", "Name the file inside it").at(path));
        }
        // SAFETY: the map is only read. A program that truncates the file meanwhile would fault it, as it would any
        // reader of mapped models; files of ours are replaced by rename, which leaves the mapped one whole.
        #[expect(unsafe_code, reason = "mapping a file is unsafe by nature; this is the one place")]
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("read", path, &e))?;
        Self::parse(path, Bytes::Mapped(map))
    }

    /// A file that is part of the program; `path` is what messages call it.
    pub fn embedded(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        Self::parse(path, Bytes::Embedded(bytes))
    }

    fn parse(path: &Path, map: Bytes) -> Result<Self> {
        let broken = |e: safetensors::SafeTensorError| {
            let advice = "The file is cut short or not a safetensors file: fetch or export it again";
            Error::new(format!("This is not a whole safetensors file ({e})"), advice).at(path)
        };
        if pickle::is_pickle(&map) {
            return Err(pickle::refusal().at(path));
        }
        let (header, parsed) = SafeTensors::read_metadata(&map).map_err(broken)?;
        let start = header + 8;
        if start + parsed.data_len() != map.len() {
            return Err(Error::new(
                format!(
                    "The file holds {} bytes of tensors where its header promises {}",
                    map.len() - start,
                    parsed.data_len()
                ),
                "The file is cut short: fetch or export it again",
            )
            .at(path));
        }
        let entries = parsed
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (from, to) = info.data_offsets;
                (
                    name,
                    Entry {
                        dtype: info.dtype,
                        shape: info.shape.clone(),
                        file: 0,
                        start: start + from,
                        end: start + to,
                    },
                )
            })
            .collect();
        let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path: path.to_path_buf(), files: vec![Arc::new(map)], entries, metadata })
    }

    /// The tensors that `name` renames, under their new names; the bytes are shared.
    #[must_use]
    pub fn renamed(&self, name: impl Fn(&str) -> Option<String>) -> Self {
        let entries = self.entries.iter().filter_map(|(stored, entry)| Some((name(stored)?, entry.clone()))).collect();
        Self { path: self.path.clone(), files: self.files.clone(), entries, metadata: self.metadata.clone() }
    }

    /// Exchanges a tensor for equal parts of its rows under these names, as many as there are; the bytes are shared. What
    /// does not divide stays as it is.
    pub fn split(&mut self, name: &str, parts: &[String]) {
        let Some(entry) = self.entries.get(name) else { return };
        let count = parts.len();
        if count > 1 && !entry.shape.first().is_some_and(|rows| rows.is_multiple_of(count)) {
            return;
        }
        let Some(entry) = self.entries.remove(name) else { return };
        let bytes = (entry.end - entry.start) / count.max(1);
        for (i, part) in parts.iter().enumerate() {
            let mut of_part = Entry { start: entry.start + i * bytes, ..entry.clone() };
            of_part.end = of_part.start + bytes;
            if count > 1 {
                of_part.shape[0] /= count;
            }
            self.entries.insert(part.clone(), of_part);
        }
    }

    /// Exchanges a matrix for its transpose, under another name.
    pub fn transpose(&mut self, name: &str, renamed: &str) -> Result<()> {
        let tensor = self.raw(name)?.transposed();
        self.entries.remove(name);
        let (dtype, file, end) = (tensor.dtype, self.files.len(), tensor.bytes.len());
        self.entries.insert(renamed.to_owned(), Entry { dtype, shape: tensor.shape, file, start: 0, end });
        self.files.push(Arc::new(Bytes::Made(tensor.bytes)));
        Ok(())
    }

    /// The tensors of all of `shards` as one checkpoint; `path` is what messages call it.
    pub fn joined(path: &Path, shards: Vec<Self>) -> Self {
        let whole = Self { path: path.into(), files: Vec::new(), entries: BTreeMap::new(), metadata: BTreeMap::new() };
        shards.into_iter().fold(whole, |mut whole, shard| {
            let files = whole.files.len();
            let moved = |entry: Entry| Entry { file: files + entry.file, ..entry };
            whole.entries.extend(shard.entries.into_iter().map(|(name, entry)| (name, moved(entry))));
            whole.metadata.extend(shard.metadata);
            whole.files.extend(shard.files);
            whole
        })
    }

    /// Names and shapes without bytes, for tests of what is told by them alone.
    #[cfg(test)]
    pub(crate) fn shaped(names: impl Iterator<Item = (String, Vec<usize>)>, dtype: Dtype) -> Self {
        let entry = |shape| Entry { dtype, shape, file: 0, start: 0, end: 0 };
        let entries = names.map(|(name, shape)| (name, entry(shape))).collect();
        let files = vec![Arc::new(Bytes::Made(Vec::new()))];
        Self { path: "made.safetensors".into(), files, entries, metadata: BTreeMap::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// SHA-256 of the tensors' bytes in the order of the file: what they are, whatever the metadata. Of a whole file these
    /// are all bytes after the header (kohya's `sshs_model_hash`).
    pub fn tensor_hash(&self) -> String {
        let mut order: Vec<&Entry> = self.entries.values().collect();
        order.sort_by_key(|entry| (entry.file, entry.start, entry.end));
        let mut hash = Sha256::new();
        for entry in order {
            hash.update(self.bytes(entry));
        }
        hex(&hash.finalize())
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file][entry.start..entry.end]
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            Error::new(format!("The tensor “{name}” is missing"), "The file is of another kind than expected")
                .at(&self.path)
        })
    }

    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// A tensor as it is stored.
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        let shape = self.shape(name)?.to_vec();
        let entry = &self.entries[name];
        Ok(Tensor { dtype: entry.dtype, shape, bytes: self.bytes(entry).to_vec() })
    }

    /// A tensor's bytes where they lie: in the file.
    pub fn stored(&self, name: &str) -> Result<&[u8]> {
        Ok(self.bytes(self.entry(name)?))
    }

    /// The values as f16, row-major: as they are stored, or rounded (to infinity, beyond f16's range).
    pub fn f16(&self, name: &str) -> Result<Numbers<f16>> {
        let entry = self.entry(name)?;
        if entry.dtype == Dtype::F16 {
            return Ok(decode::f16s(self.bytes(entry)));
        }
        let values: Vec<f16> = self.f32(name)?.into_iter().map(f16::from_f32).collect();
        Ok(Numbers { finite: values.iter().all(|x| x.is_finite()), values })
    }

    /// The values of a tensor as f32, row-major.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.numbers(name)?.values)
    }

    /// The values of a tensor, and whether all of them are finite.
    pub fn numbers(&self, name: &str) -> Result<Numbers> {
        let entry = self.entry(name)?;
        decode::numbers(entry.dtype, self.bytes(entry)).ok_or_else(|| {
            Error::new(
                format!("The tensor “{name}” is stored as {:?}", entry.dtype),
                "Only f16, bf16, f32 and f64 can be read: convert the file",
            )
            .at(&self.path)
        })
    }
}

/// A number as a tensor of this format keeps it.
pub fn kept(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// A tensor about to be written.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Stores `values` as f16 or bf16 when asked, otherwise as f32.
    pub fn new(dtype: Dtype, shape: &[usize], values: &[f32]) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        let (dtype, bytes) = match dtype {
            Dtype::F16 => (dtype, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
            Dtype::BF16 => (dtype, values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()),
            _ => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        Self { dtype, shape: shape.to_vec(), bytes }
    }

    /// A matrix with rows and columns exchanged; what is none stays as it is.
    #[must_use]
    pub fn transposed(self) -> Self {
        let [rows, columns] = self.shape[..] else { return self };
        let size = self.bytes.len() / (rows * columns).max(1);
        let at = |row: usize, column: usize| &self.bytes[(row * columns + column) * size..][..size];
        let bytes = (0..columns).flat_map(|column| (0..rows).flat_map(move |row| at(row, column))).copied().collect();
        Self { shape: vec![columns, rows], bytes, ..self }
    }

    /// Whether each of its numbers is one, in the format it is stored in: f16 ends at 65504.
    pub fn is_finite(&self) -> bool {
        match self.dtype {
            Dtype::F16 => self.bytes.as_chunks().0.iter().all(|&b| f16::from_le_bytes(b).is_finite()),
            Dtype::BF16 => self.bytes.as_chunks().0.iter().all(|&b| bf16::from_le_bytes(b).is_finite()),
            Dtype::F32 => self.bytes.as_chunks().0.iter().all(|&b| f32::from_le_bytes(b).is_finite()),
            _ => true,
        }
    }
}

/// A tensor's place in a file that is yet to be written.
#[derive(Clone, Debug)]
pub struct Slot {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Slot {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes `tensors` in name order under `metadata` in key order: equal content makes equal bytes.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let slot = |tensor: &Tensor| Slot { dtype: tensor.dtype, shape: tensor.shape.clone() };
    let slots = tensors.iter().map(|(name, tensor)| (name.clone(), slot(tensor))).collect();
    save_each(path, &slots, metadata, |name| Ok(Cow::Borrowed(&tensors[name].bytes)))
}

/// As [`save`], each tensor's bytes as they are asked for: only one of them is in memory at a time.
pub fn save_each<'a>(
    path: &Path,
    slots: &BTreeMap<String, Slot>,
    metadata: &BTreeMap<String, String>,
    mut bytes: impl FnMut(&str) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let header = header(slots, metadata);
    let mut failed = None;
    let written = atomic::write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        in_file_order(slots).into_iter().try_for_each(|(name, slot)| match bytes(name) {
            Ok(bytes) if bytes.len() == slot.bytes() => out.write_all(&bytes),
            Ok(_) => {
                let what = format!("The parts of {name} are of different number formats");
                failed = Some(Error::new(what, "Convert the model to one format first").at(path));
                Err(std::io::ErrorKind::Other.into())
            }
            Err(error) => {
                failed = Some(error);
                Err(std::io::ErrorKind::Other.into())
            }
        })
    });
    failed.map_or(written, Err)
}

/// SHA-256 of the tensor bytes as [`save`] lays them out.
pub fn tensor_hash(tensors: &BTreeMap<String, Tensor>) -> String {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| Reverse(tensor.dtype.bitsize()));
    let mut hash = Sha256::new();
    for (_, tensor) in order {
        hash.update(&tensor.bytes);
    }
    hex(&hash.finalize())
}

/// Wide types first, then by name, so that every tensor is aligned to its own width as readers expect.
fn in_file_order(slots: &BTreeMap<String, Slot>) -> Vec<(&String, &Slot)> {
    let mut order: Vec<_> = slots.iter().collect();
    order.sort_by_key(|(_, slot)| Reverse(slot.dtype.bitsize()));
    order
}

fn header(slots: &BTreeMap<String, Slot>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut fields = serde_json::Map::new();
    if !metadata.is_empty() {
        fields.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for (name, slot) in in_file_order(slots) {
        let start = end;
        end += slot.bytes();
        fields.insert(name.clone(), json!({ "dtype": slot.dtype, "shape": slot.shape, "data_offsets": [start, end] }));
    }
    let mut header = serde_json::Value::Object(fields).to_string().into_bytes();
    // The tensor block starts on a multiple of eight so that a map of it is aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BTreeMap<String, Tensor> {
        BTreeMap::from([
            ("a".to_owned(), Tensor::new(Dtype::F16, &[3], &[1.0, -2.0, 0.5])),
            ("b".to_owned(), Tensor::new(Dtype::F32, &[2, 1], &[1e-7, 3.25])),
            ("c".to_owned(), Tensor::new(Dtype::BF16, &[1], &[1.5])),
        ])
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata = BTreeMap::from([("z".to_owned(), "1".to_owned()), ("a".to_owned(), "ü\"\n".to_owned())]);
        save(&path, &sample(), &metadata).unwrap();
        let read = Checkpoint::open(&path).unwrap();
        assert_eq!(read.f32("a").unwrap(), [1.0, -2.0, 0.5]);
        assert_eq!(read.f32("b").unwrap(), [1e-7, 3.25]);
        assert_eq!(read.shape("b").unwrap(), [2, 1]);
        assert_eq!(read.f32("c").unwrap(), [1.5]);
        assert_eq!(read.metadata(), &metadata);
        assert_eq!(read.tensor_hash(), tensor_hash(&sample()));
        assert!(read.f32("d").unwrap_err().what.contains("missing"));
        let first = std::fs::read(&path).unwrap();
        save(&path, &sample(), &metadata).unwrap();
        assert_eq!(first, std::fs::read(&path).unwrap());
    }

    #[test]
    fn parts_and_shards_share_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, tensors: &BTreeMap<String, Tensor>| {
            let path = folder.path().join(name);
            save(&path, tensors, &BTreeMap::new()).unwrap();
            Checkpoint::open(&path).unwrap()
        };
        let (mut first, mut second) = (sample(), sample());
        first.remove("c");
        second.retain(|name, _| name == "c");
        let whole = file("whole", &sample());
        let joined = Checkpoint::joined(Path::new("both"), vec![file("1", &first), file("2", &second)]);
        for name in ["a", "b", "c"] {
            assert_eq!(joined.raw(name).unwrap().bytes, whole.raw(name).unwrap().bytes);
        }
        let part = joined.renamed(|name| name.strip_prefix('c').map(|_| "d".to_owned()));
        assert_eq!((part.entries().len(), part.f32("d").unwrap()), (1, vec![1.5]));
        assert_eq!(part.tensor_hash(), tensor_hash(&second), "the hash of a part is that of its tensors alone");
        assert_ne!(joined.tensor_hash(), part.tensor_hash());
    }

    #[test]
    fn broken_files_are_sentences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        save(&path, &sample(), &BTreeMap::new()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let huge_header = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        let cases: [&[u8]; 6] =
            [b"", b"short", &whole[..whole.len() - 1], &whole[..20], &huge_header, b"PK\x03\x04 a zip of pickles"];
        for bytes in cases {
            std::fs::write(&path, bytes).unwrap();
            let error = Checkpoint::open(&path).unwrap_err();
            assert_eq!(error.path.as_deref(), Some(path.as_path()), "{error}");
            assert!(!error.advice.is_empty(), "{error}");
        }
        assert!(Checkpoint::open(folder.path()).unwrap_err().what.contains("folder"));
        assert!(Checkpoint::open(&folder.path().join("none")).unwrap_err().advice.contains("exists"));
    }
}
