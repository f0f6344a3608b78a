//! `sparsegpt generate`: texts from one model, or from several side by side.

mod page;
mod presets;
mod prompt;

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use sparsegpt_models::checkpoint::Checkpoint;
use sparsegpt_models::decoder::Transformer;
use sparsegpt_models::generate::{
    GenerateOptions, Generated, TextStream, check_prompt, generate_samples,
};
use sparsegpt_models::tokenizer::Tokenizer;

use self::presets::Preset;
use self::prompt::{Asked, PromptFlags, Prompted};
use crate::console::Console;
use crate::failure::Failure;
use crate::{interrupt, model};

/// Samples of a model at most, each of which waits in memory.
const MOST_SAMPLES: usize = 1000;

/// Flags of `generate`.
#[derive(Args, Debug)]
pub(crate) struct GenerateArgs {
    /// HuggingFace folders or .gguf files; several, as the dense model and pruned ones, are shown side by side
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,

    #[command(flatten)]
    prompt: PromptFlags,

    #[command(flatten)]
    sampling: SamplingFlags,
}

/// How tokens are chosen. What is not given is the preset's.
#[derive(Args, Debug)]
struct SamplingFlags {
    /// New tokens at most [default: 128, or the preset's]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,

    /// Texts of each model, each drawn on its own; the first is the one that comes alone
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,

    /// 0 takes the likeliest token each time; otherwise tokens are drawn, the more freely the higher [default: 0, or the
    /// preset's]
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f64>,

    /// Draw among this many likeliest tokens only
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,

    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "PROBABILITY")]
    top_p: Option<f64>,

    /// Draw among the tokens that have at least this share of the likeliest one's probability [default: 0, or the preset's]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    min_p: Option<f64>,

    /// Divide the logits of tokens that are in the text already by this, or multiply them where they are negative
    /// [default: 1, or the preset's]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,

    /// Seed of the draw [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

impl SamplingFlags {
    /// The options and the number of samples.
    fn options(
        &self,
        preset: Option<&Preset>,
        console: &Console,
    ) -> Result<(GenerateOptions, usize), Failure> {
        let default = GenerateOptions::default();
        let options = GenerateOptions {
            max_new_tokens: self
                .max_new_tokens
                .or_else(|| preset.map(|preset| preset.max_new_tokens))
                .unwrap_or(default.max_new_tokens),
            temperature: self
                .temperature
                .or_else(|| preset.map(|preset| preset.temperature))
                .unwrap_or(default.temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p.or_else(|| preset.map(|preset| preset.min_p)),
            repetition_penalty: self
                .repetition_penalty
                .or_else(|| preset.map(|preset| preset.repetition_penalty))
                .unwrap_or(default.repetition_penalty),
            seed: self.seed.unwrap_or(default.seed),
            eos: Vec::new(),
        };
        options.validate()?;
        if !(1..=MOST_SAMPLES).contains(&self.samples) {
            return Err(Failure::usage(format!(
                "--samples: expected from 1 to {MOST_SAMPLES}, found {}",
                self.samples
            )));
        }
        if options.temperature > 0.0 {
            return Ok((options, self.samples));
        }
        let given = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--seed", self.seed.is_some()),
            ("--samples", self.samples > 1),
        ];
        console.none_read(&given, "nothing is drawn at --temperature 0");
        Ok((options, 1))
    }
}

/// The settings of a draw, as a report tells them.
#[derive(Debug, Serialize)]
struct Settings {
    max_new_tokens: usize,
    samples: usize,
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: f64,
    seed: u64,
}

/// One text of a model.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    pub(super) text: String,
    #[serde(flatten)]
    pub(super) generated: Generated,
}

#[derive(Debug, Serialize)]
struct OfModel<'a> {
    model: &'a Path,
    name: String,
    /// What the model's chat template made of the conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    rendered: Option<String>,
    prompt_tokens: usize,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    asked: &'a Asked,
    /// The text, where there is only one.
    #[serde(flatten)]
    only: Option<&'a Sample>,
    settings: Settings,
    models: &'a [OfModel<'a>],
}

/// A model that was looked at, and what it is to read.
struct Reader<'a> {
    path: &'a Path,
    name: String,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    prompted: Prompted,
}

pub(crate) fn run(args: &GenerateArgs, console: &Console) -> Result<(), Failure> {
    let asked = args.prompt.asked(console);
    let (options, samples) = args.sampling.options(args.prompt.preset(), console)?;
    // All models are looked at before the first is run.
    let readers = args.models.iter().zip(model::names(&args.models));
    let readers = readers.map(|(path, name)| {
        let (checkpoint, config) = model::open_decoder(path, "generate", console)?;
        let tokenizer = model::tokenizer(&checkpoint)?;
        let prompted = Prompted::of(&asked, &tokenizer)?;
        check_prompt(&config, &prompted.tokens)
            .map_err(|error| Failure::from(error).placed(&asked.place(path)))?;
        Ok(Reader {
            prompted,
            path,
            name,
            checkpoint,
            tokenizer,
        })
    });
    let readers = readers.collect::<Result<Vec<_>, Failure>>()?;
    let page = page::Page::new(readers.len(), samples, asked.opening(), console);
    let bar = match page.streams() {
        true => ProgressBar::hidden(),
        false => {
            let tokens = options.max_new_tokens.saturating_mul(samples);
            console.progress(tokens.saturating_mul(readers.len()) as u64)
        }
    };
    let mut done = Vec::new();
    for reader in readers {
        let of_model = write_texts(reader, &options, samples, &page, &bar)?;
        bar.suspend(|| page.of_model(&of_model.name, &of_model.samples))?;
        interrupt::check()?;
        done.push(of_model);
    }
    bar.finish_and_clear();
    let columns = done.iter().map(|of| (of.name.as_str(), &of.samples[..]));
    page.end(&columns.collect::<Vec<_>>())?;
    console.print_json(&Report {
        asked: &asked,
        only: match done.as_slice() {
            [one] if samples == 1 => one.samples.first(),
            _ => None,
        },
        settings: Settings {
            max_new_tokens: options.max_new_tokens,
            samples,
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            seed: options.seed,
        },
        models: &done,
    })
}

/// All texts of one model, which is in memory only as long.
fn write_texts<'a>(
    reader: Reader<'a>,
    options: &GenerateOptions,
    samples: usize,
    page: &page::Page<'_>,
    bar: &ProgressBar,
) -> Result<OfModel<'a>, Failure> {
    let Reader {
        path,
        name,
        checkpoint,
        tokenizer,
        prompted: Prompted { rendered, tokens },
    } = reader;
    let model = model::load(&checkpoint, &checkpoint.tensors())?;
    let options = GenerateOptions {
        eos: tokenizer.eos().to_vec(),
        ..options.clone()
    };
    bar.set_message(name.clone());
    page.begin(&name)?;
    let samples = continue_text(&model, &tokenizer, &tokens, &options, samples, &mut |new| {
        bar.inc(1);
        page.piece(new)
    })?;
    Ok(OfModel {
        model: path,
        name,
        rendered,
        prompt_tokens: tokens.len(),
        samples,
    })
}

/// Continues a prompt so many times; `show` gets each piece of new text as soon as its characters are complete.
pub(super) fn continue_text(
    model: &Transformer,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    samples: usize,
    show: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<Vec<Sample>, Failure> {
    let numbers: Vec<u64> = (0..samples as u64).collect();
    let streams = numbers.iter().map(|_| TextStream::new(tokenizer, prompt));
    let mut streams = streams.collect::<Result<Vec<_>, _>>()?;
    let mut failed = None;
    let all = generate_samples(model, prompt, options, &numbers, &mut |at, token| {
        let new = streams[at].push(token).map_err(Failure::from);
        if let Err(failure) = new.and_then(|new| show(&new)) {
            failed = Some(failure);
        }
        failed.is_none() && !interrupt::requested()
    })?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let texts = all.into_iter().zip(&mut streams);
    let samples = texts.map(|(generated, stream)| {
        show(&stream.finish()?)?;
        let text = stream.text()?;
        Ok(Sample { text, generated })
    });
    samples.collect()
}
