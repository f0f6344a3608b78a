//! Log-likelihoods of continuations.
//!
//! The tokens that all choices of a question begin with run once. Questions whose shared beginnings are equally long run
//! together, then what the choices add, again those of equal length together, on copies of the cache of keys and values. So
//! nothing is padded.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::decoder::{BATCH_TOKENS, Transformer, values};
use crate::evaluate::{HEAD_TOKENS, nll};
use crate::{Error, Result};

/// Tokens of a question, at least, where questions are put together.
const LEAST_TOKENS: usize = 32;

/// Tokens, of which those from `start` on are scored; `start` is neither 0 nor the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) tokens: Vec<u32>,
    pub(super) start: usize,
}

/// What a model makes of a continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Likelihood {
    /// Sum of the log-probabilities of its tokens, in nats.
    pub(super) log: f64,
    /// Whether each token is the likeliest at its place.
    pub(super) greedy: bool,
}

impl Request {
    /// What the model reads: the last token predicts nothing.
    fn inputs(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }

    /// Positions whose predictions are scored.
    fn scored(&self) -> Range<usize> {
        self.start - 1..self.tokens.len() - 1
    }
}

/// The number of a question and that of one of its requests.
type Place = (usize, usize);

/// A prediction to be read: at a row of a pass's output, the probability of a token, for a request of a question.
#[derive(Clone, Copy, Debug)]
struct Reading {
    row: usize,
    token: u32,
    of: Place,
}

/// The likelihoods of all requests of all questions. `progress` is told the questions done and those in all, and returns
/// `false` to stop.
pub(super) fn likelihoods(
    model: &Transformer,
    questions: &[Vec<Request>],
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Vec<Likelihood>>> {
    let none = Likelihood {
        log: 0.0,
        greedy: true,
    };
    let mut pass = Pass {
        model,
        questions,
        found: questions
            .iter()
            .map(|requests| vec![none; requests.len()])
            .collect(),
    };
    let mut by_prefix: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (question, requests) in questions.iter().enumerate() {
        let shared = shared_prefix(requests);
        let longest = requests.iter().map(|request| request.inputs().len()).max();
        // Keys that would have to turn by other angles in the longest are not shared.
        let turns = model.config().turns_anew(shared, longest.unwrap_or(shared));
        by_prefix
            .entry(if turns { 0 } else { shared })
            .or_default()
            .push(question);
    }
    let mut done = 0;
    for (prefix, members) in by_prefix {
        for batch in members.chunks((BATCH_TOKENS / prefix.max(LEAST_TOKENS)).max(1)) {
            pass.run(prefix, batch)?;
            done += batch.len();
            if !progress(done, questions.len()) {
                return Err(Error::Stopped);
            }
        }
    }
    Ok(pass.found)
}

/// How many tokens all requests begin with.
fn shared_prefix(requests: &[Request]) -> usize {
    let Some((first, others)) = requests.split_first() else {
        return 0;
    };
    others.iter().fold(first.inputs().len(), |length, other| {
        let pairs = first.inputs()[..length].iter().zip(other.inputs());
        pairs.take_while(|(a, b)| a == b).count()
    })
}

struct Pass<'a> {
    model: &'a Transformer,
    questions: &'a [Vec<Request>],
    found: Vec<Vec<Likelihood>>,
}

impl Pass<'_> {
    /// Scores questions whose requests share `prefix` tokens.
    fn run(&mut self, prefix: usize, batch: &[usize]) -> Result<()> {
        let questions = self.questions;
        // By the length of what stands behind the prefix: number in the batch, question and request.
        let mut rests: BTreeMap<usize, Vec<(usize, Place)>> = BTreeMap::new();
        for (at, &question) in batch.iter().enumerate() {
            for (number, request) in questions[question].iter().enumerate() {
                rests
                    .entry(request.inputs().len() - prefix)
                    .or_default()
                    .push((at, (question, number)));
            }
        }
        let mut cache = self.model.cache();
        if prefix > 0 {
            let sequences: Vec<&[u32]> = batch
                .iter()
                .map(|&question| &questions[question][0].tokens[..prefix])
                .collect();
            let needed = rests.keys().any(|&length| length > 0);
            let hidden = self
                .model
                .hidden(&sequences, needed.then_some(&mut cache))?;
            let all = rests.values().flatten();
            self.read(&hidden, all.copied(), 0..prefix)?;
        }
        for (length, members) in rests.into_iter().filter(|(length, _)| *length > 0) {
            for members in members.chunks((BATCH_TOKENS / (prefix + length)).max(1)) {
                let numbers: Vec<usize> = members.iter().map(|(at, _)| *at).collect();
                let sequences: Vec<&[u32]> = members
                    .iter()
                    .map(|(_, of)| &questions[of.0][of.1].inputs()[prefix..])
                    .collect();
                let mut own = cache.of(&numbers);
                let hidden = self.model.hidden(&sequences, Some(&mut own))?;
                let in_turn = members.iter().enumerate().map(|(at, (_, of))| (at, *of));
                self.read(&hidden, in_turn, prefix..prefix + length)?;
            }
        }
        Ok(())
    }

    /// Reads predictions from the output (sequences x time x width) at some positions, for requests with the numbers of
    /// their sequences.
    fn read(
        &mut self,
        hidden: &Tensor,
        requests: impl Iterator<Item = (usize, Place)>,
        positions: Range<usize>,
    ) -> Result<()> {
        let mut readings = Vec::new();
        for (sequence, of) in requests {
            let request = &self.questions[of.0][of.1];
            let scored = request.scored();
            let seen = scored.start.max(positions.start)..scored.end.min(positions.end);
            readings.extend(seen.map(|position| Reading {
                row: sequence * positions.len() + position - positions.start,
                token: request.tokens[position + 1],
                of,
            }));
        }
        // Choices that share a row share its logits.
        readings.sort_by_key(|reading| reading.row);
        let rows: Vec<&[Reading]> = readings.chunk_by(|a, b| a.row == b.row).collect();
        let (sequences, time, width) = hidden.dims3()?;
        let hidden = hidden.reshape((sequences * time, width))?;
        let vocabulary = self.model.config().vocab_size;
        for rows in rows.chunks(HEAD_TOKENS) {
            let numbers: Vec<u32> = rows.iter().map(|of_row| of_row[0].row as u32).collect();
            let numbers = Tensor::new(numbers, &Device::Cpu)?;
            let logits = self.model.head(&hidden.index_select(&numbers, 0)?)?;
            let (logits, layout) = logits.storage_and_layout();
            let read: Vec<Vec<Likelihood>> = values(&logits, layout)?
                .par_chunks(vocabulary)
                .zip(rows)
                .map(|(logits, readings)| {
                    let read = readings
                        .iter()
                        .map(|reading| predicted(logits, reading.token as usize));
                    read.collect()
                })
                .collect();
            for (reading, found) in rows.concat().iter().zip(read.concat()) {
                if !found.log.is_finite() {
                    return Err(Error::tensor(
                        "(logits)",
                        "hold NaN or infinity; the model's weights are broken",
                    ));
                }
                let sum = &mut self.found[reading.of.0][reading.of.1];
                sum.log += found.log;
                sum.greedy &= found.greedy;
            }
        }
        Ok(())
    }
}

fn predicted(logits: &[f32], token: usize) -> Likelihood {
    let own = logits[token];
    Likelihood {
        log: -nll(logits, token),
        // Of equal logits the first is taken for the likeliest.
        greedy: logits[..token].iter().all(|&other| other < own)
            && logits[token..].iter().all(|&other| other <= own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tokens: &[u32], start: usize) -> Request {
        Request {
            tokens: tokens.to_vec(),
            start,
        }
    }

    #[test]
    fn what_requests_share_is_what_all_of_them_read() {
        let shared = |requests: &[Request]| shared_prefix(requests);
        assert_eq!(shared(&[request(&[1, 2, 3, 4], 2)]), 3);
        // The last token of the shorter one is not read.
        assert_eq!(
            shared(&[request(&[1, 2, 3], 2), request(&[1, 2, 3, 4], 2)]),
            2
        );
        assert_eq!(
            shared(&[
                request(&[1, 2, 3, 4], 2),
                request(&[1, 2, 9, 4], 2),
                request(&[1, 7, 7, 7], 1)
            ]),
            1
        );
        assert_eq!(shared(&[request(&[1, 2], 1), request(&[3, 2], 1)]), 0);
        assert_eq!(shared(&[]), 0);
    }

    #[test]
    fn the_first_of_equal_logits_is_the_likeliest() {
        let logits = [1.0, 3.0, 3.0, 0.0];
        let greedy: Vec<bool> = (0..4)
            .map(|token| predicted(&logits, token).greedy)
            .collect();
        assert_eq!(greedy, [false, true, false, false]);
        let sum: f64 = (0..4)
            .map(|token| predicted(&logits, token).log.exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!((predicted(&logits, 1).log - predicted(&logits, 3).log - 3.0).abs() < 1e-6);
    }
}
