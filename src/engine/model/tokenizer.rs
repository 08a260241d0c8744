//! CLIP's byte-pair encoding, with room for words that an adapter brings along.
//!
//! The pipeline is the one transformers' `CLIPTokenizer` builds from the same crate; ids are equal to its ids.

use std::io::Read as _;

use ahash::AHashMap;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::engine::io::Folder;
use crate::engine::{Error, Result};

/// OpenAI CLIP's merges, for models that bring no vocabulary of their own.
const CLIP_MERGES: &[u8] = include_bytes!("../../../assets/clip/bpe_simple_vocab_16e6.txt.gz");
/// CLIP's table holds 49,408 entries: 512 bytes, the merges, two ends.
const CLIP_WORDS: usize = 49_408;
const NO_MERGES: usize = 512 + 2;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    /// What fills a prompt up.
    pad: u32,
    /// Ids in a prompt, both ends included.
    length: usize,
}

/// A prompt as the text encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Exactly as many as the encoder has positions; filled up with the end token in SD 1.x.
    pub ids: Vec<u32>,
    /// Position of the end token.
    pub end: usize,
    /// Positions whose embedding is replaced by a vector of an adapter's word.
    pub marks: Vec<Mark>,
    /// How many ids there was no room for.
    pub dropped: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub position: usize,
    /// Index into the words given to [`Tokenizer::encode`].
    pub word: usize,
    /// Which of the word's vectors.
    pub vector: usize,
}

impl Encoded {
    /// The ids for an encoder that knows the same words and fills up with another.
    pub fn filled(&self, pad: u32) -> Vec<u32> {
        self.ids.iter().enumerate().map(|(at, &id)| if at > self.end { pad } else { id }).collect()
    }
}

/// A word that stands for trained vectors instead of vocabulary entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub vectors: usize,
}

impl Tokenizer {
    /// `tokenizer/vocab.json` and `merges.txt` of a model folder.
    pub fn open(folder: &Folder, length: usize) -> Result<Self> {
        let vocabulary: AHashMap<String, u32> = folder.json("tokenizer/vocab.json")?;
        let merges = folder.text("tokenizer/merges.txt")?;
        let merges = merges.lines().filter(|line| !line.starts_with("#version")).filter_map(pair).collect();
        let mut tokenizer = Self::new(vocabulary, merges, length).map_err(|e| e.at(folder.path().join("tokenizer")))?;
        tokenizer.fill_with(pad_token(folder, "tokenizer").as_deref());
        Ok(tokenizer)
    }

    /// The id of a word of the vocabulary.
    pub fn id(&self, word: &str) -> Option<u32> {
        self.inner.token_to_id(word)
    }

    /// Fills prompts up with another word than the end token, if it is known.
    pub(super) fn fill_with(&mut self, word: Option<&str>) {
        self.pad = word.and_then(|word| self.id(word)).unwrap_or(self.pad);
    }

    /// The full CLIP vocabulary, built in.
    pub fn clip(length: usize) -> Result<Self> {
        Self::clip_cut(length, CLIP_WORDS)
    }

    /// The same with its first merges alone, so that it has `words` entries; no more than all, no fewer than the bytes.
    pub fn clip_cut(length: usize, words: usize) -> Result<Self> {
        let merges = words.clamp(NO_MERGES, CLIP_WORDS) - NO_MERGES;
        let mut text = String::new();
        flate2::read::GzDecoder::new(CLIP_MERGES).read_to_string(&mut text).map_err(|e| {
            Error::new(format!("The built-in vocabulary cannot be read ({e})"), "Install the program again")
        })?;
        let merges: Vec<(String, String)> = text.lines().skip(1).filter_map(pair).take(merges).collect();
        let bytes = byte_letters();
        let words = bytes.iter().map(|&c| c.to_string()).chain(bytes.iter().map(|c| format!("{c}</w>")));
        let words = words.chain(merges.iter().map(|(a, b)| format!("{a}{b}"))).chain([START.into(), END.into()]);
        Self::new(words.zip(0..).collect(), merges, length)
    }

    fn new(vocabulary: AHashMap<String, u32>, merges: Vec<(String, String)>, length: usize) -> Result<Self> {
        let broken =
            |e: tokenizers::Error| Error::new(format!("The vocabulary is not CLIP's ({e})"), "Fetch the model again");
        let id = |word: &str| {
            let found = vocabulary.get(word).copied();
            found.ok_or_else(|| Error::new(format!("The vocabulary lacks {word}"), "Fetch the model again"))
        };
        let (start, end) = (id(START)?, id(END)?);
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".into())
            .unk_token(END.into())
            .build()
            .map_err(broken)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(broken)?;
        let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
        inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(broken)?;
        let split =
            Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true).map_err(broken)?;
        let steps: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, true).into()];
        inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
        inner.add_special_tokens([START, END].map(|word| AddedToken::from(word, true))).map_err(broken)?;
        Ok(Self { inner, start, end, pad: end, length })
    }

    /// One more than the highest id.
    pub fn words(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The ids of `text` alone, without ends or filling.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|e| {
            Error::new(format!("The prompt cannot be tokenised ({e})"), "Remove unusual characters from it")
        })
    }

    /// A prompt with both ends, cut or filled to length, in which each of `words` stands for its own vectors. Brackets in it
    /// are characters: so captions are read. What is typed to be painted is a [`super::chunks::Prompt`].
    pub fn encode(&self, text: &str, words: &[Word]) -> Result<Encoded> {
        let mut slots = Vec::new();
        for piece in pieces(text, words) {
            match piece {
                Piece::Text(text) => slots.extend(self.ids(text)?.into_iter().map(Slot::Id)),
                Piece::Word(word) => {
                    slots.extend((0..words[word].vectors).map(|vector| Slot::Vector { word, vector }));
                }
            }
        }
        Ok(self.enclose(&slots))
    }

    /// Ids in a prompt between its ends.
    pub fn room(&self) -> usize {
        self.length.saturating_sub(2)
    }

    /// The id of a comma.
    pub(super) fn comma(&self) -> Option<u32> {
        self.inner.token_to_id(",</w>")
    }

    /// With both ends, cut or filled to length.
    pub(super) fn enclose(&self, slots: &[Slot]) -> Encoded {
        let kept = &slots[..slots.len().min(self.room())];
        let mut ids = vec![self.start];
        let mut marks = Vec::new();
        for slot in kept {
            match *slot {
                Slot::Id(id) => ids.push(id),
                Slot::Vector { word, vector } => {
                    marks.push(Mark { position: ids.len(), word, vector });
                    ids.push(self.end);
                }
            }
        }
        let end = ids.len();
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Encoded { ids, end, marks, dropped: slots.len() - kept.len() }
    }
}

/// What stands at a position of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    Id(u32),
    /// A vector of an adapter's word.
    Vector {
        word: usize,
        vector: usize,
    },
}

pub(super) enum Piece<'a> {
    Text(&'a str),
    Word(usize),
}

/// Cuts `text` at every occurrence of a word; of two that start together the longer one counts.
pub(super) fn pieces<'a>(text: &'a str, words: &[Word]) -> Vec<Piece<'a>> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        let found = words
            .iter()
            .enumerate()
            .filter_map(|(i, word)| Some((find_word(rest, &word.text)?, std::cmp::Reverse(word.text.len()), i)))
            .min();
        let Some((start, length, word)) = found else {
            out.push(Piece::Text(rest));
            return out;
        };
        out.push(Piece::Text(&rest[..start]));
        out.push(Piece::Word(word));
        rest = &rest[start + length.0..];
    }
}

/// Where `word` stands alone: a token without brackets is not found inside a longer word.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let joins = |before: Option<char>, after: Option<char>| {
        before.is_some_and(char::is_alphanumeric) && after.is_some_and(char::is_alphanumeric)
    };
    text.match_indices(word).map(|(start, _)| start).find(|&start| {
        let end = start + word.len();
        !joins(text[..start].chars().next_back(), word.chars().next())
            && !joins(word.chars().next_back(), text[end..].chars().next())
    })
}

/// `<words>` in a prompt that none of `words` defines.
pub fn undefined_words(text: &str, words: &[Word]) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        rest = &rest[start..];
        let Some(end) = rest.find('>') else { break };
        let word = &rest[..=end];
        if word.len() > 2 && !word[1..].contains(['<', ' ', '|']) && !words.iter().any(|known| known.text == word) {
            found.push(word.to_owned());
        }
        rest = &rest[1..];
    }
    found
}

/// The word with which a folder's tokenizer fills prompts up: `!` in SD 2.x and in the second of SDXL.
pub(super) fn pad_token(folder: &Folder, part: &str) -> Option<String> {
    let files = ["tokenizer_config.json", "special_tokens_map.json"].map(|file| format!("{part}/{file}"));
    files.iter().filter(|file| folder.has(file)).find_map(|file| {
        let config: serde_json::Value = folder.json(file).ok()?;
        let token = &config["pad_token"];
        token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
    })
}

fn pair(line: &str) -> Option<(String, String)> {
    line.split_once(' ').map(|(a, b)| (a.to_owned(), b.trim_end().to_owned()))
}

/// The letter that stands for each byte, in the order of CLIP's table: printable ones first, as themselves.
fn byte_letters() -> Vec<char> {
    let printable = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF);
    let others = (0..=255_u8).filter(|b| !matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF));
    let shifted = (256_u32..).zip(others).filter_map(|(code, _)| char::from_u32(code));
    printable.map(char::from).chain(shifted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Vec<Word> {
        vec![Word { text: "<a>".into(), vectors: 2 }, Word { text: "<ab>".into(), vectors: 1 }]
    }

    #[test]
    fn words_become_marks_at_their_place() {
        let tokenizer = Tokenizer::clip(77).unwrap();
        let plain = tokenizer.encode("a photo of", &[]).unwrap();
        let marked = tokenizer.encode("a photo of <a> and<ab>", &words()).unwrap();
        assert_eq!(marked.ids[..4], plain.ids[..4]);
        let at = |position, word, vector| Mark { position, word, vector };
        assert_eq!(marked.marks, [at(4, 0, 0), at(4 + 1, 0, 1), at(7, 1, 0)]);
        assert_eq!((marked.ids.len(), marked.ids[76]), (77, 49_407));
    }

    #[test]
    fn undefined_words_are_named() {
        assert_eq!(undefined_words("<a> <b> <3 <|x|> <c>", &words()), ["<b>", "<c>"]);
    }
}
