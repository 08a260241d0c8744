//! Prompts of any length, as chunks that the text encoder reads one by one, and the weights of their parts (A1111,
//! `modules/sd_hijack_clip.py` and `sd_emphasis.py`).

use burn::tensor::{Tensor, TensorData};

use crate::engine::model::prompt::{self, Span};
use crate::engine::model::tokenizer::{Encoded, Slot, Tokenizer, Word};
use crate::engine::{Error, Result};

/// How far back a comma may lie for a full chunk to end with it instead of in the middle of what follows.
const BACKTRACK: usize = 20;
/// The denoiser looks at all of them in every layer: more would be a pasted book.
const MOST: usize = 40;

/// A prompt as the text encoder takes it, chunk by chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// At least one.
    chunks: Vec<Chunk>,
    /// Of the last chunk, without ends and filling.
    last: usize,
    /// Of a chunk, likewise.
    room: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct Chunk {
    encoded: Encoded,
    /// One for each id; ends and filling weigh 1.
    weights: Vec<f32>,
}

impl Prompt {
    /// Each of `words` stands for its own vectors.
    pub fn new(text: &str, tokenizer: &Tokenizer, words: &[Word]) -> Result<Self> {
        let mut filler = Filler {
            tokenizer,
            room: tokenizer.room(),
            chunks: Vec::new(),
            slots: Vec::new(),
            weights: Vec::new(),
            last_comma: None,
        };
        for span in prompt::spans(text, words) {
            match span {
                Span::Break => filler.close(),
                Span::Text(text, weight) => {
                    for id in tokenizer.ids(&text)? {
                        filler.push(Slot::Id(id), weight);
                    }
                }
                Span::Word(word, weight) => {
                    let vectors = words[word].vectors;
                    filler.make_room(vectors);
                    for vector in 0..vectors {
                        filler.push(Slot::Vector { word, vector }, weight);
                    }
                }
            }
        }
        let prompt = filler.finish();
        if prompt.chunks.len() > MOST {
            let (tokens, room) = (prompt.tokens(), prompt.room);
            return Err(Error::usage(
                format!("The prompt has {tokens} tokens, and at most {} can be read", MOST * room),
                "Shorten it, or take out some BREAK",
            ));
        }
        Ok(prompt)
    }

    /// How many tokens it takes up; a chunk that a `BREAK` ended counts as full.
    pub fn tokens(&self) -> usize {
        (self.chunks.len() - 1) * self.room + self.last
    }

    /// How many its chunks have room for.
    pub fn capacity(&self) -> usize {
        self.chunks.len() * self.room
    }
}

/// Prompts of one context, all with as many chunks as the longest: the shorter end with empty ones, as A1111 pads prompt
/// and negative prompt to the same length.
pub struct Chunked {
    prompts: usize,
    chunks: Vec<Chunk>,
}

impl Chunked {
    pub fn new(prompts: &[Prompt], tokenizer: &Tokenizer) -> Self {
        let most = prompts.iter().map(|prompt| prompt.chunks.len()).max().unwrap_or(1);
        let empty = Chunk::new(tokenizer, &[], &[]);
        let padded = |prompt: &Prompt| {
            let mut chunks = prompt.chunks.clone();
            chunks.resize(most, empty.clone());
            chunks
        };
        Self { prompts: prompts.len(), chunks: prompts.iter().flat_map(padded).collect() }
    }

    /// The rows `[prompts · chunks, 77]` that the text encoder reads.
    pub fn rows(&self) -> Vec<Encoded> {
        self.chunks.iter().map(|chunk| chunk.encoded.clone()).collect()
    }

    /// The row with which each prompt begins.
    pub fn firsts(&self) -> Vec<usize> {
        let chunks = self.chunks.len() / self.prompts.max(1);
        (0..self.prompts).map(|prompt| prompt * chunks).collect()
    }

    /// What the text encoders, of these `widths`, made of the rows, `z [prompts · chunks, 77, width]`, weighed and put
    /// together: `[prompts, chunks · 77, width]`. Each encoder's answer to each chunk keeps its mean:
    /// `z′ = z·w · mean(z) / mean(z·w)`.
    pub fn join(&self, z: Tensor<3>, widths: &[usize]) -> Tensor<3> {
        let [rows, n, width] = z.dims();
        let weights: Vec<f32> = self.chunks.iter().flat_map(|chunk| &chunk.weights).copied().collect();
        let z = if weights.iter().all(|w| (w - 1.0).abs() < f32::EPSILON) {
            z
        } else {
            let w = Tensor::<3>::from_data(TensorData::new(weights, [rows, n, 1]), &z.device());
            let weigh = |z: Tensor<3>, width: usize| {
                let mean = |z: Tensor<3>| z.reshape([rows, n * width]).mean_dim(1).reshape([rows, 1, 1]);
                let weighed = z.clone() * w.clone();
                weighed.clone() * (mean(z) / mean(weighed))
            };
            let starts = widths.iter().scan(0, |start, width| Some(std::mem::replace(start, *start + width)));
            let parts = starts.zip(widths).map(|(start, &width)| weigh(z.clone().narrow(2, start, width), width));
            Tensor::cat(parts.collect(), 2)
        };
        z.reshape([self.prompts, rows / self.prompts.max(1) * n, width])
    }
}

impl Chunk {
    fn new(tokenizer: &Tokenizer, slots: &[Slot], weights: &[f64]) -> Self {
        let encoded = tokenizer.enclose(slots);
        let mut all = vec![1.0; encoded.ids.len()];
        for (place, &weight) in all.iter_mut().skip(1).zip(weights) {
            *place = weight as f32;
        }
        Self { encoded, weights: all }
    }
}

/// Fills chunk after chunk.
struct Filler<'a> {
    tokenizer: &'a Tokenizer,
    room: usize,
    chunks: Vec<Chunk>,
    /// Of the chunk that is being filled.
    slots: Vec<Slot>,
    weights: Vec<f64>,
    last_comma: Option<usize>,
}

impl Filler<'_> {
    fn push(&mut self, slot: Slot, weight: f64) {
        if matches!(slot, Slot::Id(id) if self.tokenizer.comma() == Some(id)) {
            self.last_comma = Some(self.slots.len());
        } else {
            self.end_at_comma();
        }
        if self.slots.len() == self.room {
            self.close();
        }
        self.slots.push(slot);
        self.weights.push(weight);
    }

    /// A full chunk ends with its last comma, where that is near; what follows it goes into the next.
    fn end_at_comma(&mut self) {
        let full = self.slots.len() == self.room;
        let Some(comma) = self.last_comma.filter(|comma| full && self.room - comma <= BACKTRACK) else { return };
        let (slots, weights) = (self.slots.split_off(comma + 1), self.weights.split_off(comma + 1));
        self.close();
        (self.slots, self.weights) = (slots, weights);
    }

    /// So many vectors stay together where a chunk can hold them.
    fn make_room(&mut self, vectors: usize) {
        self.end_at_comma();
        if self.slots.len() + vectors > self.room && vectors <= self.room {
            self.close();
        }
    }

    fn close(&mut self) {
        self.chunks.push(Chunk::new(self.tokenizer, &self.slots, &self.weights));
        self.slots.clear();
        self.weights.clear();
        self.last_comma = None;
    }

    fn finish(mut self) -> Prompt {
        // After a BREAK at the very end nothing more is begun.
        let last = if self.slots.is_empty() && !self.chunks.is_empty() { self.room } else { self.slots.len() };
        if !self.slots.is_empty() || self.chunks.is_empty() {
            self.close();
        }
        Prompt { chunks: self.chunks, last, room: self.room }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::engine::device;

    const COMMA: u32 = 267;

    fn tokenizer() -> Tokenizer {
        Tokenizer::clip(77).unwrap()
    }

    fn prompt(text: &str, words: &[Word]) -> Prompt {
        Prompt::new(text, &tokenizer(), words).unwrap()
    }

    /// The ids of each chunk without ends and filling.
    fn contents(prompt: &Prompt) -> Vec<Vec<u32>> {
        let end = |id: &u32| *id == 49_407;
        let inside = |chunk: &Chunk| chunk.encoded.ids[1..].iter().copied().take_while(|id| !end(id)).collect();
        prompt.chunks.iter().map(inside).collect()
    }

    fn lengths(prompt: &Prompt) -> Vec<usize> {
        contents(prompt).iter().map(Vec::len).collect()
    }

    #[test]
    fn a_short_plain_prompt_is_what_a_caption_is() {
        let words = [Word { text: "<a>".into(), vectors: 2 }];
        for text in ["", "a photo of <a> cat, sitting: 1", &"red ".repeat(75)] {
            let prompt = prompt(text, &words);
            let rows = Chunked::new(std::slice::from_ref(&prompt), &tokenizer()).rows();
            assert_eq!(rows, [tokenizer().encode(text, &words).unwrap()], "{text}");
            assert_eq!(prompt.capacity(), 75);
        }
        assert_eq!((prompt("", &[]).tokens(), prompt("a red cat", &[]).tokens()), (0, 3));
    }

    #[test]
    fn a_full_chunk_ends_at_a_comma_that_is_near() {
        let near = prompt(&format!("{}, {}", "red ".repeat(60), "blue ".repeat(30)), &[]);
        assert_eq!((lengths(&near), near.tokens(), near.capacity()), (vec![61, 30], 75 + 30, 150));
        assert_eq!(contents(&near)[0][60], COMMA);
        // 21 tokens back is too far, 20 is not.
        let far = |before: usize| lengths(&prompt(&format!("{}, {}", "red ".repeat(before), "blue ".repeat(40)), &[]));
        assert_eq!((far(54), far(55)), (vec![75, 20], vec![56, 40]));
        assert_eq!(lengths(&prompt(&"red ".repeat(76), &[])), [75, 1]);
    }

    #[test]
    fn a_break_starts_a_new_chunk() {
        let broken = prompt("a red cat BREAK (a dog:1.5)", &[]);
        assert_eq!((lengths(&broken), broken.tokens()), (vec![3, 2], 77));
        assert_eq!(broken.chunks[1].weights[..4], [1.0, 1.5, 1.5, 1.0]);
        assert_eq!(lengths(&prompt("BREAK a BREAK", &[])), [0, 1]);
        assert_eq!(prompt("a BREAK", &[]).tokens(), 75);
    }

    #[test]
    fn a_word_of_an_adapter_is_weighed_and_stays_whole() {
        let words = [Word { text: "<sks>".into(), vectors: 4 }];
        let weighed = prompt("a (fine <sks>:1.5) cat", &words);
        assert_eq!(weighed.chunks[0].weights[..8], [1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.0]);
        let marks: Vec<_> = weighed.chunks[0].encoded.marks.iter().map(|mark| (mark.position, mark.vector)).collect();
        assert_eq!(marks, [(3, 0), (4, 1), (5, 2), (6, 3)]);
        for before in [71, 72, 74, 75] {
            let long = prompt(&format!("{} <sks> blue", "red ".repeat(before)), &words);
            let marks: Vec<usize> = long.chunks.iter().map(|chunk| chunk.encoded.marks.len()).collect();
            assert_eq!(marks, if before == 71 { [4, 0] } else { [0, 4] }, "{before}");
        }
        // It moves with what follows the comma.
        let moved = prompt(&format!("{}, blue <sks> {}", "red ".repeat(60), "green ".repeat(20)), &words);
        assert_eq!(moved.chunks[1].encoded.marks[0].position, 2);
        let huge = prompt("<sks>", &[Word { text: "<sks>".into(), vectors: 80 }]);
        let all: usize = huge.chunks.iter().map(|chunk| chunk.encoded.marks.len()).sum();
        assert_eq!((huge.chunks.len(), all), (2, 80), "what no chunk can hold is divided");
    }

    #[test]
    fn the_shorter_prompt_ends_with_empty_chunks() {
        let (short, long) = (prompt("a cat", &[]), prompt(&"red ".repeat(160), &[]));
        let chunked = Chunked::new(&[long.clone(), short], &tokenizer());
        let rows = chunked.rows();
        assert_eq!(rows.len(), 6);
        let empty = tokenizer().encode("", &[]).unwrap();
        assert_eq!((&rows[4], &rows[5]), (&empty, &empty));
        assert_eq!(rows[2], long.chunks[2].encoded);
        let z = Tensor::<3>::random([6, 77, 2], Distribution::Default, &device::cpu());
        let joined = chunked.join(z.clone(), &[z.dims()[2]]);
        assert_eq!(joined.dims(), [2, 231, 2]);
        assert_eq!(joined.narrow(0, 1, 1).narrow(1, 77, 77).into_data(), z.narrow(0, 4, 1).into_data());
    }

    #[test]
    fn weights_keep_each_chunks_mean_and_leave_unweighed_ones_alone() {
        let chunked = Chunked::new(&[prompt("plain", &[]), prompt("a ((red)) [cat] (no:-1)", &[])], &tokenizer());
        let z = Tensor::<3>::random([2, 77, 8], Distribution::Normal(0.5, 1.0), &device::cpu());
        let joined = chunked.join(z.clone(), &[z.dims()[2]]);
        let row = |z: &Tensor<3>, i: usize| z.clone().narrow(0, i, 1);
        assert_eq!(row(&joined, 0).into_data(), row(&z, 0).into_data());
        let [before, after]: [f32; 2] = [&z, &joined].map(|z| row(z, 1).mean().into_scalar());
        assert!((before - after).abs() < 1e-5 * before.abs().max(1.0), "{before} {after}");
        // Between themselves the tokens have the weights they were given.
        let ratio = |at: usize| {
            let [a, b]: [f32; 2] = [&joined, &z].map(|z| row(z, 1).narrow(1, at, 1).sum().into_scalar());
            a / b
        };
        let found = [2, 3, 4].map(|at| ratio(at) / ratio(1));
        for (found, expected) in found.into_iter().zip([1.21, 1.0 / 1.1, -1.0]) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    /// Of two encoders side by side, each keeps its own mean, as if it were alone.
    #[test]
    fn each_encoder_is_weighed_by_itself() {
        let chunked = Chunked::new(&[prompt("a ((red)) cat", &[])], &tokenizer());
        let z = Tensor::<3>::random([1, 77, 5], Distribution::Normal(0.5, 1.0), &device::cpu());
        let both = chunked.join(z.clone(), &[2, 3]);
        for (start, width) in [(0, 2), (2, 3)] {
            let alone = chunked.join(z.clone().narrow(2, start, width), &[width]);
            assert_eq!(both.clone().narrow(2, start, width).into_data(), alone.into_data());
        }
    }

    #[test]
    fn a_pasted_book_is_refused() {
        let error = Prompt::new(&"red ".repeat(3001), &tokenizer(), &[]).unwrap_err();
        assert!(error.what.contains("3001 tokens") && error.what.contains("3000"), "{error}");
        assert!(Prompt::new(&"BREAK ".repeat(100_000), &tokenizer(), &[]).is_err());
    }
}
