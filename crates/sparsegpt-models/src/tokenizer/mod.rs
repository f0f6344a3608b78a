//! Text to token ids and back.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Encoding, Model, OffsetType, PreTokenizer};

use crate::checkpoint::{CONFIG_FILE, read_json, read_small_file};
use crate::{Error, Result};

mod seams;

use seams::Seams;
pub(crate) use seams::{LLAMA3_PATTERN, QWEN2_PATTERN, SPACE};

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
pub(crate) const GENERATION_CONFIG_FILE: &str = "generation_config.json";

const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
/// Keys of tokenizer_config.json that name a token.
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What hides a token from BERT and from RoBERTa, where no file says it.
const MASK_TOKENS: [&str; 2] = ["[MASK]", "<mask>"];

/// Files a tokenizer consists of: carried along unchanged. Only the first is needed.
const TOKENIZER_FILES: [&str; 8] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    "added_tokens.json",
    CHAT_TEMPLATE_FILE,
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// A model's tokenizer, with the special tokens that its model folder declares.
///
/// ```no_run
/// use std::path::Path;
/// use sparsegpt_models::tokenizer::Tokenizer;
///
/// let tokenizer = Tokenizer::from_folder(Path::new("models/tiny-llama"))?;
/// let ids = tokenizer.encode_plain("Hello world")?;
/// assert_eq!(tokenizer.decode(&ids)?, "Hello world");
/// # Ok::<(), sparsegpt_models::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    /// Where it came from, for errors: its tokenizer.json, or the GGUF file that has it in its metadata.
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    seams: Seams,
    files: BTreeMap<String, Vec<u8>>,
    bos: Option<u32>,
    eos: Vec<u32>,
    mask: Option<u32>,
    first_token: FirstToken,
}

/// What `add_bos_token` of tokenizer_config.json demands beside the post-processor of
/// tokenizer.json, which may not know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstToken {
    AsPostProcessor,
    AddBos(u32),
    RemoveBos,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads tokenizer.json of a model folder, and from tokenizer_config.json,
    /// generation_config.json and config.json, where present, the special tokens.
    ///
    /// # Errors
    /// If there is no tokenizer.json, or a file cannot be understood.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        if !folder.join(TOKENIZER_FILE).is_file() {
            return Err(Error::format(
                folder,
                format!(
                    "no {TOKENIZER_FILE}; a tokenizer in another form (tokenizer.model, \
                     vocab.json) can be converted by saving it again with transformers"
                ),
            ));
        }
        let mut files = BTreeMap::new();
        for name in TOKENIZER_FILES {
            let path = folder.join(name);
            if path.is_file() {
                files.insert(name.to_owned(), read_small_file(&path)?);
            }
        }
        let mut configs = Vec::new();
        for name in [GENERATION_CONFIG_FILE, CONFIG_FILE] {
            let path = folder.join(name);
            if path.is_file() {
                configs.push(read_json(&path)?);
            }
        }
        Self::from_files(&folder.join(TOKENIZER_FILE), files, &configs)
    }

    /// From the contents of its files. The token numbers (`bos_token_id`, `eos_token_id`) are
    /// those of the first of `configs` that has them. `path` is what errors name.
    pub(crate) fn from_files(
        path: &Path,
        files: BTreeMap<String, Vec<u8>>,
        configs: &[Value],
    ) -> Result<Self> {
        let refuse = |reason: &dyn fmt::Display| Error::tokenizer(path, reason);
        let json = files
            .get(TOKENIZER_FILE)
            .ok_or_else(|| refuse(&format!("no {TOKENIZER_FILE}")))?;
        let _: Buffered = serde_json::from_slice(json).map_err(|source| refuse(&source))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(json).map_err(|source| refuse(&source))?;
        // Calibration and evaluation texts are cut by their readers, never here.
        inner.with_truncation(None).map_err(|e| refuse(&e))?;
        inner.with_padding(None);

        let own: Value = match files.get(TOKENIZER_CONFIG_FILE) {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|source| {
                refuse(&format!("{TOKENIZER_CONFIG_FILE} beside it: {source}"))
            })?,
            None => Value::Null,
        };
        let named = |key: &str| special_token(&inner, own.get(key));
        let numbered = |key: &str| {
            configs
                .iter()
                .map(|config| token_ids(config.get(key)))
                .find(|i| !i.is_empty())
        };

        // `"bos_token": null` says that there is none, whatever the model's config has.
        let bos = match own.get("bos_token") {
            Some(_) => named("bos_token"),
            None => numbered("bos_token_id").and_then(|ids| ids.first().copied()),
        };
        let eos =
            numbered("eos_token_id").unwrap_or_else(|| named("eos_token").into_iter().collect());

        // With a text, since an end token may be the same as the first.
        let processed = inner.encode_fast("a", true).map_err(|e| refuse(&e))?;
        let adds_bos = bos.is_some() && processed.get_ids().first().copied() == bos;
        let first_token = match (own.get("add_bos_token").and_then(Value::as_bool), bos) {
            (Some(true), Some(bos)) if !adds_bos => FirstToken::AddBos(bos),
            (Some(false), _) if adds_bos => FirstToken::RemoveBos,
            _ => FirstToken::AsPostProcessor,
        };
        let seams = Seams::of(&inner);
        Ok(Self {
            path: path.to_path_buf(),
            seams,
            files,
            mask: named("mask_token").or_else(|| {
                let usual = MASK_TOKENS.iter();
                usual.copied().find_map(|token| inner.token_to_id(token))
            }),
            bos,
            eos,
            first_token,
            inner,
        })
    }

    /// Token ids of a text, with the special tokens that the tokenizer puts around it. The whole
    /// text is one sequence, of any length.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_while(text, &|| true)
    }

    /// The same for a text that may be long: `go_on` is asked before each of the text's pieces (words, as far as the
    /// tokenizer has such) and returns `false` to stop.
    ///
    /// # Errors
    /// [`Error::Stopped`] where `go_on` said so, and as [`encode`](Self::encode).
    pub fn encode_while(&self, text: &str, go_on: &dyn Fn() -> bool) -> Result<Vec<u32>> {
        let mut ids = self.ids(text, true, go_on)?;
        match self.first_token {
            FirstToken::AsPostProcessor => {}
            FirstToken::AddBos(bos) => ids.insert(0, bos),
            FirstToken::RemoveBos => {
                ids.remove(0);
            }
        }
        Ok(ids)
    }

    /// Token ids of a text alone.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_plain_while(text, &|| true)
    }

    /// The same for a text that may be long, as [`encode_while`](Self::encode_while).
    ///
    /// # Errors
    /// As [`encode_while`](Self::encode_while).
    pub fn encode_plain_while(&self, text: &str, go_on: &dyn Fn() -> bool) -> Result<Vec<u32>> {
        self.ids(text, false, go_on)
    }

    /// The tokens that [`encode`](Self::encode) puts before a text and behind it, as `[CLS]` and `[SEP]`.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn frame(&self) -> Result<[Vec<u32>; 2]> {
        let (framed, plain) = (self.encode("a")?, self.encode_plain("a")?);
        let before = framed
            .windows(plain.len().max(1))
            .position(|run| run == plain);
        Ok(match before {
            Some(before) => [
                framed[..before].to_vec(),
                framed[before + plain.len()..].to_vec(),
            ],
            None => [Vec::new(), Vec::new()],
        })
    }

    /// The sentinels that stand for spans of tokens (`<extra_id_0>` and so on, T5), in the order of their use.
    #[must_use]
    pub fn sentinels(&self) -> Vec<u32> {
        (0..)
            .map_while(|index| self.inner.token_to_id(&format!("<extra_id_{index}>")))
            .collect()
    }

    /// The token that hides another from an encoder, where the tokenizer has one.
    #[must_use]
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// The steps of `tokenizers::Tokenizer::encode_fast`, part by part so that they can be stopped and need memory for
    /// one part only.
    fn ids(&self, text: &str, special_tokens: bool, go_on: &dyn Fn() -> bool) -> Result<Vec<u32>> {
        let stopped = Cell::new(false);
        let step = || {
            if go_on() {
                return Ok(());
            }
            stopped.set(true);
            Err(tokenizers::Error::from("stopped"))
        };
        let encode = |part: &str| -> tokenizers::Result<Encoding> {
            step()?;
            let mut pieces = self
                .inner
                .get_added_vocabulary()
                .extract_and_normalize(self.inner.get_normalizer(), part);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            self.seams.split_words(&mut pieces)?;
            let model = self.inner.get_model();
            pieces.tokenize(|piece| {
                step()?;
                model.tokenize(piece.get())
            })?;
            pieces.into_encoding(None, 0, OffsetType::None)
        };
        let steps = || -> tokenizers::Result<Vec<u32>> {
            let mut whole = Encoding::default();
            for part in self.seams.parts(text) {
                whole.merge_with(encode(part)?, false);
            }
            let processed = self.inner.post_process(whole, None, special_tokens)?;
            Ok(processed.get_ids().to_vec())
        };
        steps().map_err(|error| {
            if stopped.get() {
                Error::Stopped
            } else {
                Error::tokenizer(&self.path, error)
            }
        })
    }

    /// The text of token ids, special tokens left out.
    ///
    /// # Errors
    /// If an id is out of the vocabulary, or the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(Error::tokenizer(
                &self.path,
                format!("token {id} is not in the vocabulary"),
            ));
        }
        self.inner
            .decode(ids, true)
            .map_err(|e| Error::tokenizer(&self.path, e))
    }

    /// The token that a sequence begins with, where the model has one. Whether
    /// [`encode`](Self::encode) puts it there is the tokenizer's own choice.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a generated text.
    #[must_use]
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Where it came from, for errors.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// tokenizer.json.
    pub(crate) fn json(&self) -> Result<Value> {
        let bytes = self
            .files
            .get(TOKENIZER_FILE)
            .map_or(&[][..], Vec::as_slice);
        serde_json::from_slice(bytes).map_err(|error| Error::tokenizer(&self.path, error))
    }

    /// The template of conversations (of several, the default) and the file that has it, where there is one.
    pub(crate) fn chat_template(&self) -> Result<Option<(PathBuf, String)>> {
        if let Some(template) = self.files.get(CHAT_TEMPLATE_FILE) {
            let path = self.beside(CHAT_TEMPLATE_FILE);
            return match String::from_utf8(template.clone()) {
                Ok(template) => Ok(Some((path, template))),
                Err(error) => Err(Error::chat_template(path, error.to_string())),
            };
        }
        let own = self.own_config();
        let template = match &own["chat_template"] {
            Value::Array(several) => {
                let default = several.iter().find(|one| one["name"] == "default");
                default.and_then(|one| one["template"].as_str())
            }
            one => one.as_str(),
        };
        Ok(template.map(|template| (self.beside(TOKENIZER_CONFIG_FILE), template.to_owned())))
    }

    /// The special tokens that the model folder declares, by the names under which templates know them.
    pub(crate) fn special_tokens(&self) -> BTreeMap<String, String> {
        let map = self.files.get(SPECIAL_TOKENS_FILE);
        let map: Value = map
            .and_then(|bytes| serde_json::from_slice(bytes).ok())
            .unwrap_or_default();
        let own = self.own_config();
        let declared = |key: &str| match own.get(key) {
            Some(token) => content(token),
            None => content(map.get(key)?),
        };
        let names = SPECIAL_TOKENS.iter();
        names
            .filter_map(|name| Some(((*name).to_owned(), declared(name)?.to_owned())))
            .collect()
    }

    /// tokenizer_config.json; it was held against its form when the tokenizer was read.
    fn own_config(&self) -> Value {
        let bytes = self.files.get(TOKENIZER_CONFIG_FILE);
        bytes
            .and_then(|bytes| serde_json::from_slice(bytes).ok())
            .unwrap_or_default()
    }

    /// Where another of the tokenizer's files is: a GGUF file has them all.
    fn beside(&self, name: &str) -> PathBuf {
        match self.path.ends_with(TOKENIZER_FILE) {
            true => self.path.with_file_name(name),
            false => self.path.clone(),
        }
    }

    /// Writes the tokenizer's files into an existing folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(|source| Error::io("write", path, source))?;
        }
        Ok(())
    }
}

/// The parts of tokenizer.json that `tokenizers` takes for well-formed JSON before it has looked, and panics where they are not.
#[derive(Deserialize)]
struct Buffered {
    #[serde(rename = "normalizer")]
    _normalizer: Option<Value>,
    #[serde(rename = "pre_tokenizer")]
    _pre_tokenizer: Option<Value>,
    #[serde(rename = "post_processor")]
    _post_processor: Option<Value>,
    #[serde(rename = "decoder")]
    _decoder: Option<Value>,
}

/// The id of a token given as `"<s>"` or as `{"content": "<s>", …}`.
fn special_token(tokenizer: &tokenizers::Tokenizer, value: Option<&Value>) -> Option<u32> {
    tokenizer.token_to_id(content(value?)?)
}

/// The text of a token given as `"<s>"` or as `{"content": "<s>", …}`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// One id or a list of them.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
        Some(id) => one(id).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::checkpoint::{Checkpoint, fixtures};

    /// Words of one letter, `<s>` put first where asked.
    fn words(template: bool, config: &Value, model: &Value) -> Result<Tokenizer> {
        let bos = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let template = template.then(|| {
            json!({
                "type": "TemplateProcessing",
                "single": [bos, text],
                "pair": [bos, text, text],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } },
            })
        });
        let special = |id: u32, content: &str| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        };
        let tokenizer = json!({
            "version": "1.0",
            "truncation": { "direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                "stride": 0 },
            "padding": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": template,
            "decoder": null,
            "model": { "type": "WordLevel", "unk_token": "?",
                "vocab": { "<s>": 0, "</s>": 1, "?": 2, "a": 3, "b": 4 } },
        });
        let files = BTreeMap::from([
            (
                TOKENIZER_FILE.to_owned(),
                tokenizer.to_string().into_bytes(),
            ),
            (
                TOKENIZER_CONFIG_FILE.to_owned(),
                config.to_string().into_bytes(),
            ),
        ]);
        Tokenizer::from_files(
            Path::new("folder/tokenizer.json"),
            files,
            std::slice::from_ref(model),
        )
    }

    /// Calls of `go_on` for a text, stopped at the call of this number.
    fn asked(tokenizer: &Tokenizer, text: &str, stop_at: usize) -> (usize, Result<Vec<u32>>) {
        let calls = Cell::new(0);
        let ids = tokenizer.encode_while(text, &|| {
            calls.set(calls.get() + 1);
            calls.get() < stop_at
        });
        (calls.get(), ids)
    }

    #[test]
    fn a_long_text_can_be_stopped_between_words() {
        let tokenizer = words(false, &json!({}), &Value::Null).unwrap();
        let text = "a b a b ".repeat(500);
        let (calls, ids) = asked(&tokenizer, &text, usize::MAX);
        assert_eq!(ids.unwrap(), tokenizer.encode(&text).unwrap());
        assert!(calls >= 2000, "{calls}");
        for stop_at in [1, 2, 3, 1000] {
            let (calls, ids) = asked(&tokenizer, &text, stop_at);
            assert_eq!(calls, stop_at);
            assert!(matches!(ids, Err(Error::Stopped)), "{ids:?}");
        }
    }

    #[test]
    fn parts_that_are_no_json_are_refused() {
        let of_decoder = |decoder: &[u8]| {
            let json = [
                br#"{"version": "1.0", "added_tokens": [], "decoder": "#,
                decoder,
                br#", "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0}}}"#,
            ];
            let files = BTreeMap::from([(TOKENIZER_FILE.to_owned(), json.concat())]);
            Tokenizer::from_files(Path::new("folder/tokenizer.json"), files, &[])
        };
        assert!(of_decoder(br#"{"type": "Fuse"}"#).is_ok());
        let deep = [b"[".repeat(500), b"]".repeat(500)].concat();
        for bad in [
            &b"{\"type\": \"Fuse\", \"a\xffd\": 1}"[..],
            b"{\"type\"",
            &deep,
        ] {
            let error = of_decoder(bad).unwrap_err().to_string();
            assert!(error.contains("folder/tokenizer.json"), "{error}");
        }
    }

    #[test]
    fn bos_is_added_as_tokenizer_and_configuration_say() {
        let encode = |template: bool, config: Value| {
            words(template, &config, &Value::Null)
                .unwrap()
                .encode("a b")
                .unwrap()
        };
        let (plain, with_bos) = (vec![3, 4], vec![0, 3, 4]);
        assert_eq!(encode(false, json!({ "bos_token": "<s>" })), plain);
        assert_eq!(encode(true, json!({ "bos_token": "<s>" })), with_bos);
        let explicit =
            |add: bool| json!({ "bos_token": { "content": "<s>" }, "add_bos_token": add });
        assert_eq!(encode(false, explicit(true)), with_bos);
        assert_eq!(encode(true, explicit(true)), with_bos);
        assert_eq!(encode(true, explicit(false)), plain);
        let tokenizer = words(true, &explicit(true), &Value::Null).unwrap();
        assert_eq!(tokenizer.encode_plain("a b").unwrap(), plain);
        // No truncation, whatever tokenizer.json says.
        assert_eq!(tokenizer.encode("a b a b a b").unwrap().len(), 7);
        assert_eq!(tokenizer.decode(&[0, 3, 4, 1]).unwrap(), "a b");
        assert!(
            tokenizer
                .decode(&[5])
                .unwrap_err()
                .to_string()
                .contains("token 5")
        );
    }

    #[test]
    fn special_tokens_come_from_the_first_place_that_has_them() {
        let tokens = |config: Value, model: Value| {
            let tokenizer = words(false, &config, &model).unwrap();
            (tokenizer.bos(), tokenizer.eos().to_vec())
        };
        assert_eq!(tokens(json!({}), json!({})), (None, vec![]));
        let named = json!({ "bos_token": "<s>", "eos_token": "</s>" });
        assert_eq!(tokens(named.clone(), json!({})), (Some(0), vec![1]));
        assert_eq!(
            tokens(named, json!({ "eos_token_id": [1, 4] })),
            (Some(0), vec![1, 4])
        );
        assert_eq!(
            tokens(json!({}), json!({ "bos_token_id": 3 })),
            (Some(3), vec![])
        );
        // An explicit null is an answer.
        assert_eq!(
            tokens(json!({ "bos_token": null }), json!({ "bos_token_id": 3 })).0,
            None
        );
    }

    #[test]
    fn folders_are_read_and_saved() {
        let root = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_folder(root.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        assert!(
            error.contains(&root.path().display().to_string()),
            "{error}"
        );
        let config = json!({ "bos_token": "<s>", "eos_token": "</s>" });
        words(true, &config, &Value::Null)
            .unwrap()
            .save(root.path())
            .unwrap();
        fs::write(
            root.path().join(GENERATION_CONFIG_FILE),
            r#"{"eos_token_id": 4}"#,
        )
        .unwrap();
        fs::write(root.path().join(CONFIG_FILE), r#"{"eos_token_id": 3}"#).unwrap();
        let tokenizer = Tokenizer::from_folder(root.path()).unwrap();
        assert_eq!(tokenizer.encode("a b").unwrap(), [0, 3, 4]);
        assert_eq!(tokenizer.eos(), [4]);
        for damaged in ["", "{", r#"{"model": 1}"#] {
            fs::write(root.path().join(TOKENIZER_FILE), damaged).unwrap();
            let error = Tokenizer::from_folder(root.path()).unwrap_err().to_string();
            let path = root.path().join(TOKENIZER_FILE);
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn jargon_tokenizer_round_trips() {
        let Some(folder) = fixtures::shared("models/jargon") else {
            return;
        };
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (1024, &[0][..]));
        let text = fs::read_to_string(folder.join("heldout.txt")).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let at_once = tokenizer.inner.encode_fast(text, true).unwrap();
        assert_eq!(ids, at_once.get_ids());
    }

    #[test]
    fn smollm2_ids_are_those_of_transformers() {
        let (Some(model), Some(golden), Some(wiki)) = (
            fixtures::smollm2(),
            fixtures::shared("golden/smollm2/expected.safetensors"),
            fixtures::shared("data/wikitext2/wiki.test.raw"),
        ) else {
            return;
        };
        let read = Checkpoint::open(&model).unwrap();
        let tokenizer = read.tokenizer().unwrap();
        let bytes = fs::read(golden).unwrap();
        let (_, golden) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let golden = golden.metadata().clone().unwrap();
        let value = |key: &str| serde_json::from_str::<Value>(&golden[key]).unwrap();

        let probes: Vec<(String, Vec<u32>)> =
            serde_json::from_value(value("tokenizer_probe")).unwrap();
        assert!(!probes.is_empty());
        for (text, ids) in probes {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
        }
        let text = fs::read_to_string(wiki).unwrap();
        let started = std::time::Instant::now();
        let ids = tokenizer.encode(&text).unwrap();
        eprintln!("{} bytes encoded in {:?}", text.len(), started.elapsed());
        assert_eq!(
            ids.len() as u64,
            value("wiki_test_tokens").as_u64().unwrap()
        );
        let first: Vec<u32> = serde_json::from_value(value("wiki_test_first_tokens")).unwrap();
        assert_eq!(ids[..first.len()], first);

        let copy = tempfile::tempdir().unwrap();
        tokenizer.save(copy.path()).unwrap();
        let copy = Tokenizer::from_folder(copy.path()).unwrap();
        assert_eq!(
            copy.encode(&text[..100_001]).unwrap(),
            tokenizer.encode(&text[..100_001]).unwrap()
        );
        assert_eq!((copy.bos(), copy.eos()), (tokenizer.bos(), tokenizer.eos()));
        assert_eq!((copy.bos(), copy.eos()), (Some(1), &[2][..]));
    }
}
