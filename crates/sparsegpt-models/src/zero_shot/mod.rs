//! Zero-shot tasks: which of several continuations a model finds the likeliest.
//!
//! Prompts, scores and their errors are those of lm-evaluation-harness, or of the harness that the SparseGPT and GPTQ papers
//! used in 2022 ([`PromptRecipe`]). A choice's score is Σ log p(token | all before it) over the tokens of its continuation;
//! the accuracy takes the choice with the highest, the normalized accuracy the one with the highest score a character.
//!
//! ```no_run
//! use std::path::Path;
//! use sparsegpt_models::checkpoint::Checkpoint;
//! use sparsegpt_models::decoder::Llama;
//! use sparsegpt_models::zero_shot::{PromptRecipe, Task, evaluate, questions, task_file};
//!
//! let checkpoint = Checkpoint::open(Path::new("models/tiny-llama"))?;
//! let model = Llama::load(checkpoint.config(), &checkpoint.tensors())?;
//! let file = task_file(Path::new("data"), Task::Piqa)?.expect("a file of PIQA");
//! let questions = questions(Task::Piqa, PromptRecipe::Harness, &file, Some(200))?;
//! let result = evaluate(
//!     &model,
//!     &checkpoint.tokenizer()?,
//!     Task::Piqa,
//!     PromptRecipe::Harness,
//!     &questions,
//!     &mut |_, _| true,
//! )?;
//! println!("{:.3} ± {:.3}", result.acc.value, result.acc.standard_error);
//! # Ok::<(), sparsegpt_models::Error>(())
//! ```

mod csv;
mod find;
mod question;
mod record;
mod score;
mod task;

use serde::Serialize;

use crate::decoder::Llama;
use crate::evaluate::Mean;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub use find::task_file;
pub use question::{Choice, Question, questions};
use score::{Likelihood, Request, likelihoods};
pub use task::{PromptRecipe, Task};

/// What a model chose, question by question.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Decision {
    /// Where in its file the question stands.
    pub place: String,
    /// The right choice, from 0.
    pub gold: usize,
    /// The choice with the highest log-likelihood, the first of equal ones.
    pub chosen: usize,
    /// The choice with the highest log-likelihood a character.
    pub chosen_norm: usize,
    /// Whether the answer is right: the right choice, for LAMBADA whether its text is the likeliest.
    pub correct: bool,
    /// Log-likelihoods of the choices, in nats.
    pub log_likelihoods: Vec<f64>,
}

/// How a model did on a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskResult {
    /// The task.
    pub task: Task,
    /// How its questions became tokens.
    pub recipe: PromptRecipe,
    /// Questions asked.
    pub questions: usize,
    /// Accuracy.
    pub acc: Mean,
    /// Accuracy by log-likelihood a character, where the harness reports it.
    pub acc_norm: Option<Mean>,
    /// LAMBADA: perplexity of the last word, with the standard error by the delta method.
    pub perplexity: Option<Mean>,
    /// What was chosen.
    pub decisions: Vec<Decision>,
}

impl TaskResult {
    /// The score that the recipe quotes.
    #[must_use]
    pub fn quoted(&self) -> Mean {
        match self.acc_norm {
            Some(normalized) if self.recipe.quotes_normalized(self.task) => normalized,
            _ => self.acc,
        }
    }
}

/// Puts questions to a model. `progress` is told the questions answered and those in all; it returns `false` to stop.
///
/// # Errors
/// [`Error::Stopped`] where `progress` said so; if there is no question; if a continuation has no token of its own, or does
/// not fit into the model's context (what comes before is cut from the left); if the model gives NaN.
pub fn evaluate(
    model: &Llama,
    tokenizer: &Tokenizer,
    task: Task,
    recipe: PromptRecipe,
    questions: &[Question],
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<TaskResult> {
    if questions.is_empty() {
        return Err(Error::setting("questions", "at least one", 0));
    }
    let longest = model.config().max_positions;
    let requests = questions.iter().map(|question| {
        let of = |choice| {
            let unfit = |expected: &str, found: String| {
                Error::data(format!("{task}, {}", question.place), expected, found)
            };
            request(tokenizer, recipe, choice, longest, &unfit)
        };
        question.choices.iter().map(of).collect()
    });
    let requests: Vec<Vec<Request>> = requests.collect::<Result<_>>()?;
    let found = likelihoods(model, &requests, progress)?;
    let decisions = questions.iter().zip(&found);
    let decisions: Vec<Decision> = decisions
        .map(|(question, found)| decide(question, found))
        .collect();
    let mean_of = |right: &dyn Fn(&Decision) -> bool| {
        let rights: Vec<f64> = decisions
            .iter()
            .map(|decision| f64::from(u8::from(right(decision))))
            .collect();
        Mean::of(&rights)
    };
    Ok(TaskResult {
        task,
        recipe,
        questions: questions.len(),
        acc: mean_of(&|decision| decision.correct),
        acc_norm: task
            .is_normalized()
            .then(|| mean_of(&|decision| decision.chosen_norm == decision.gold)),
        perplexity: (task == Task::Lambada).then(|| {
            let losses: Vec<f64> = decisions
                .iter()
                .map(|decision| -decision.log_likelihoods[decision.gold])
                .collect();
            Mean::of(&losses).exp()
        }),
        decisions,
    })
}

/// The tokens of a choice, with those of its context before them.
fn request(
    tokenizer: &Tokenizer,
    recipe: PromptRecipe,
    choice: &Choice,
    longest: usize,
    unfit: &dyn Fn(&str, String) -> Error,
) -> Result<Request> {
    let Choice {
        context,
        continuation,
        ..
    } = choice;
    let (mut tokens, mut start) = match recipe {
        PromptRecipe::Harness if !context.is_empty() => {
            let tokens = tokenizer.encode(&format!("{context}{continuation}"))?;
            (tokens, tokenizer.encode(context.trim_end())?.len())
        }
        PromptRecipe::Paper if !context.is_empty() => {
            let mut tokens = tokenizer.encode_plain(context)?;
            let start = tokens.len();
            tokens.extend(tokenizer.encode_plain(continuation)?);
            (tokens, start)
        }
        // Something has to predict the first token.
        _ => {
            let first = tokenizer.bos().or_else(|| tokenizer.eos().first().copied());
            let first = first.ok_or_else(|| {
                unfit(
                    "a context, or a tokenizer with a first or last token",
                    "neither".to_owned(),
                )
            })?;
            let continuation = tokenizer.encode_plain(continuation)?;
            ([vec![first], continuation].concat(), 1)
        }
    };
    if start == 0 || start >= tokens.len() {
        return Err(unfit(
            "a continuation with tokens of its own behind those of its context",
            format!("{continuation:?} behind {start} of {} tokens", tokens.len()),
        ));
    }
    let surplus = (tokens.len() - 1).saturating_sub(longest);
    if surplus >= start {
        return Err(unfit(
            &format!("a continuation within the model's {longest} positions"),
            format!("one of {} tokens", tokens.len() - start),
        ));
    }
    tokens.drain(..surplus);
    start -= surplus;
    Ok(Request { tokens, start })
}

fn decide(question: &Question, found: &[Likelihood]) -> Decision {
    let scores: Vec<f64> = found.iter().map(|likelihood| likelihood.log).collect();
    let normalized: Vec<f64> = scores
        .iter()
        .zip(&question.choices)
        .map(|(score, choice)| score / choice.characters.max(1) as f64)
        .collect();
    let chosen = highest(&scores);
    Decision {
        place: question.place.clone(),
        gold: question.gold,
        chosen,
        chosen_norm: highest(&normalized),
        correct: match found {
            [only] => only.greedy,
            _ => chosen == question.gold,
        },
        log_likelihoods: scores,
    }
}

/// The first of the highest.
fn highest(scores: &[f64]) -> usize {
    let mut best = 0;
    for (at, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = at;
        }
    }
    best
}

#[cfg(test)]
mod tests;
