//! Chat templates: conversations as the text that an instruct checkpoint was trained on.
//!
//! A template is a program in the language of Jinja that comes with the checkpoint. It runs as in transformers, with the
//! same variables and functions, and cannot do more. Its steps, the values that it writes and its time are bounded, and whatever
//! goes wrong in it is an error.

mod json;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use chrono::{Local, NaiveDateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Steps of a template, at most; each 64 bytes that it makes are one too. Real ones take a few thousand.
const FUEL: u64 = 200_000;
/// Stack of the thread that a template runs on: as many lists in each other as the fuel allows can be written out.
const STACK: usize = 256 << 20;
/// What a template may take, for what fuel does not count, as values that share their parts; real ones take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Digits of a width or precision in `format`, at most.
const MOST_DIGITS: usize = 4;
/// Bytes of a single value that holds others, written out, at most.
const MOST_BYTES: usize = 1 << 20;
/// What the template is called in errors.
const NAME: &str = "template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// A checkpoint's chat template, with the special tokens that it can write.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::path::Path;
/// use sparsegpt_models::chat::{ChatTemplate, Message};
///
/// let source = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}\
///     {% if add_generation_prompt %}<assistant>{% endif %}";
/// let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
/// let template = ChatTemplate::new(Path::new("chat_template.jinja"), source, tokens)?;
/// let text = template.render(&[Message::new("user", " Hello ")], true)?;
/// assert_eq!(text, "<s><user>Hello\n<assistant>");
/// # Ok::<(), sparsegpt_models::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// A template from its text. `path` is what errors name; `special_tokens` are those of `tokenizer_config.json`, as
    /// `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the text is no template.
    pub fn new(
        path: &Path,
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        let template = Self {
            path: path.to_path_buf(),
            source: without_generation_tags(source),
            special_tokens,
        };
        template.run(|template| {
            let environment = environment()?;
            let parsed = environment.template_from_named_str(NAME, &template.source);
            parsed.map(drop)
        })?;
        Ok(template)
    }

    /// The template of a checkpoint: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json` (of several, the
    /// one named `default`), or `tokenizer.chat_template` of a GGUF file.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if there is none, or it is no template.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let Some((path, source)) = tokenizer.chat_template()? else {
            return Err(Error::chat_template(
                tokenizer.path(),
                "the model has none (no chat_template.jinja, no chat_template in tokenizer_config.json, or none of several \
                 that is called default); it was not made for conversations, give it a text to continue",
            ));
        };
        Self::new(&path, &source, tokenizer.special_tokens())
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the answer begins.
    ///
    /// Special tokens stand in it as text, the one that a sequence begins with too where the template writes it:
    /// [`Tokenizer::encode_plain`] makes tokens of them and adds none.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the template fails, refuses the conversation, or does too much.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_at(messages, add_generation_prompt, Local::now().naive_local())
    }

    /// The same at a time of the template's clock.
    fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: NaiveDateTime,
    ) -> Result<String> {
        let messages = messages.to_vec();
        self.run(move |template| {
            let mut environment = environment()?;
            environment.add_function("strftime_now", move |format: String| {
                let mut text = String::new();
                match write!(text, "{}", now.format(&format)) {
                    Ok(()) => Ok(text),
                    Err(fmt::Error) => Err(minijinja::Error::new(
                        ErrorKind::InvalidOperation,
                        format!("strftime_now knows no {format:?}"),
                    )),
                }
            });
            let messages = messages.iter().map(|Message { role, content }| {
                Value::from_pairs([("role", role.as_str()), ("content", content.as_str())])
            });
            // As in transformers, names of tokens that the model has not are not defined.
            let tokens = template.special_tokens.iter();
            let variables = context! {
                messages => messages.collect::<Value>(),
                add_generation_prompt,
                tools => (),
                documents => (),
                ..Value::from_pairs(tokens.map(|(name, token)| (name.as_str(), token.as_str())))
            };
            environment
                .template_from_named_str(NAME, &template.source)?
                .render(variables)
        })
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> std::result::Result<T, minijinja::Error> + Send + 'static,
    ) -> Result<T> {
        self.run_within(PATIENCE, work)
    }

    /// Does something with the template, on a stack that is deep enough for what fuel cannot bound. Where it takes too
    /// long, its thread is left to itself.
    fn run_within<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce(&Self) -> std::result::Result<T, minijinja::Error> + Send + 'static,
    ) -> Result<T> {
        let refuse = |reason: String| Error::chat_template(&self.path, reason);
        let (sender, receiver) = mpsc::sync_channel(1);
        let template = self.clone();
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                // Errors are told here, as they may hold values of the template.
                let done = work(&template).map_err(|error| told(&error));
                // Whoever asked may have given up.
                let _ = sender.send(done);
            })
            .map_err(|error| refuse(format!("cannot start a thread for it: {error}")))?;
        match receiver.recv_timeout(patience) {
            Ok(done) => done.map_err(refuse),
            Err(RecvTimeoutError::Timeout) => Err(refuse(format!(
                "stopped after {patience:?}, more than a template needs"
            ))),
            Err(RecvTimeoutError::Disconnected) => {
                Err(refuse("the template engine failed".to_owned()))
            }
        }
    }
}

/// What went wrong, in a line.
fn told(error: &minijinja::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return format!("it does not take this conversation: {message}");
        }
        source = error.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => format!("stopped after {FUEL} steps, more than a template needs"),
        _ => error.to_string(),
    }
}

/// What `raise_exception` said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// Templates as transformers sets them up.
fn environment<'source>() -> std::result::Result<Environment<'source>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    // Would write out all there is.
    environment.remove_global("debug");
    environment.set_formatter(|output, _, value| written(value, output));
    environment.add_filter("string", string);
    environment.add_filter("tojson", json::tojson);
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Value, minijinja::Error> {
            let error = minijinja::Error::new(ErrorKind::InvalidOperation, "refused");
            Err(error.with_source(Refusal(message)))
        },
    );
    Ok(environment)
}

/// Python's methods. Of `format`, fuel counts only what has been written.
fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    let digits = |text: &str| {
        let numbers = text.split(|c: char| !c.is_ascii_digit());
        numbers.map(str::len).max().unwrap_or_default()
    };
    if name == "format"
        && value
            .as_str()
            .is_some_and(|text| digits(text) > MOST_DIGITS)
    {
        return Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("format with a number of more than {MOST_DIGITS} digits"),
        ));
    }
    unknown_method_callback(state, value, name, arguments)
}

/// Writes a value as Python would, bar the quotes in lists. What holds others may be much longer written than in memory,
/// which the engine sees only afterwards.
fn written(value: &Value, to: &mut dyn Write) -> std::result::Result<(), minijinja::Error> {
    match (value.kind(), value.is_true()) {
        (ValueKind::None, _) => to.write_str("None")?,
        (ValueKind::Bool, true) => to.write_str("True")?,
        (ValueKind::Bool, false) => to.write_str("False")?,
        (ValueKind::Seq | ValueKind::Map | ValueKind::Iterable, _) => {
            let mut text = Limited(String::new());
            write!(text, "{value}").map_err(|_| {
                let reason =
                    format!("a value is longer than {MOST_BYTES} bytes when it is written");
                minijinja::Error::new(ErrorKind::InvalidOperation, reason)
            })?;
            to.write_str(&text.0)?;
        }
        _ => write!(to, "{value}")?,
    }
    Ok(())
}

/// The filter of that name.
fn string(value: &Value) -> std::result::Result<String, minijinja::Error> {
    let mut text = String::new();
    written(value, &mut text)?;
    Ok(text)
}

/// Text of so many bytes, at most.
struct Limited(String);

impl Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MOST_BYTES {
            return Err(fmt::Error);
        }
        self.0 += text;
        Ok(())
    }
}

/// The same template with `{% if true %}` for `{% generation %}`, which marks answers for training and writes nothing.
fn without_generation_tags(source: &str) -> String {
    const TAGS: [(&str, &str); 2] = [("generation", "if true"), ("endgeneration", "endif")];
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        plain += before;
        let end = tag.find("%}").unwrap_or(tag.len());
        let inner = &tag[..end];
        let word = inner.trim_matches(['-', '+']).trim();
        match TAGS.iter().find(|(name, _)| *name == word) {
            Some((name, instead)) => plain += &inner.replacen(name, instead, 1),
            None => plain += inner,
        }
        rest = &tag[end..];
    }
    plain + rest
}
