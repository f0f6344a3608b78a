//! What the models are given to read.

use std::path::Path;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use sparsegpt_models::chat::{ChatTemplate, Message};
use sparsegpt_models::tokenizer::Tokenizer;

use super::presets::{self, PRESETS, Preset};
use crate::console::Console;
use crate::failure::Failure;

/// Flags that say what the text is to be.
#[derive(Args, Debug)]
pub(super) struct PromptFlags {
    /// The text to continue; with --chat the message to answer
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "preset",
        conflicts_with = "preset"
    )]
    prompt: Option<String>,

    /// A kind of text, with a beginning (with --chat a request) and settings for the draw that suit it
    #[arg(long, value_parser = PossibleValuesParser::new(presets::names()))]
    preset: Option<String>,

    /// What the preset's text is about; for code, what the function does [default: the preset's own]
    #[arg(long, value_name = "TEXT")]
    topic: Option<String>,

    /// Put the prompt as a user's message, by the chat template that comes with an instruct checkpoint
    #[arg(long)]
    chat: bool,

    /// A system message before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
}

/// The flags worked out.
#[derive(Debug, Serialize)]
pub(super) struct Asked {
    prompt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<&'static str>,
    chat: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<String>,
}

impl PromptFlags {
    pub(super) fn preset(&self) -> Option<&'static Preset> {
        let name = self.preset.as_deref()?;
        PRESETS.iter().find(|preset| preset.name == name)
    }

    pub(super) fn asked(&self, console: &Console) -> Asked {
        let preset = self.preset();
        if preset.is_none() {
            let given = [("--topic", self.topic.is_some())];
            console.none_read(&given, "there is no --preset with a place for it");
        }
        let prompt = match preset {
            Some(preset) => {
                let text = match self.chat {
                    true => preset.request,
                    false => preset.opening,
                };
                text.replace("{topic}", self.topic.as_deref().unwrap_or(preset.topic))
            }
            None => self.prompt.clone().unwrap_or_default(),
        };
        Asked {
            prompt,
            preset: preset.map(|preset| preset.name),
            chat: self.chat,
            system: self.system.clone(),
        }
    }
}

impl Asked {
    /// Where what a model reads comes from.
    pub(super) fn place(&self, model: &Path) -> String {
        let chat = if self.chat {
            ", as its chat template writes it"
        } else {
            ""
        };
        match self.preset {
            Some(preset) => format!("{}, --preset {preset}{chat}", model.display()),
            None => format!("{}{chat}", model.display()),
        }
    }

    /// What belongs before a text that is shown: a preset's beginning, which the user has not written.
    pub(super) fn opening(&self) -> &str {
        match self.preset.is_some() && !self.chat {
            true => &self.prompt,
            false => "",
        }
    }
}

/// What one model reads.
#[derive(Debug)]
pub(super) struct Prompted {
    /// The conversation as its template writes it.
    pub(super) rendered: Option<String>,
    pub(super) tokens: Vec<u32>,
}

impl Prompted {
    pub(super) fn of(asked: &Asked, tokenizer: &Tokenizer) -> Result<Self, Failure> {
        if !asked.chat {
            return Ok(Self {
                rendered: None,
                tokens: tokenizer.encode(&asked.prompt)?,
            });
        }
        let system = asked.system.iter().map(|text| Message::new("system", text));
        let user = Message::new("user", &asked.prompt);
        let messages: Vec<Message> = system.chain([user]).collect();
        let rendered = ChatTemplate::of(tokenizer)?.render(&messages, true)?;
        Ok(Self {
            // The template writes the special tokens itself, the first one too.
            tokens: tokenizer.encode_plain(&rendered)?,
            rendered: Some(rendered),
        })
    }
}
