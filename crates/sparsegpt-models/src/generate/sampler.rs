//! The choice of the next token.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::GenerateOptions;
use crate::{Error, Result};

/// Chooses the tokens of one text.
pub(super) struct Sampler<'a> {
    options: &'a GenerateOptions,
    random: ChaCha8Rng,
    /// The prompt's tokens and those chosen; empty where nothing is penalized.
    seen: HashSet<u32>,
}

impl<'a> Sampler<'a> {
    /// For the sample of a number: of the sequences that a seed gives, the one with that number.
    pub(super) fn new(options: &'a GenerateOptions, number: u64, prompt: &[u32]) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(options.seed);
        random.set_stream(number);
        let penalized = options.repetition_penalty != 1.0;
        Self {
            options,
            random,
            seen: match penalized {
                true => prompt.iter().copied().collect(),
                false => HashSet::new(),
            },
        }
    }

    /// The next token, by the logits of the whole vocabulary.
    pub(super) fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::tensor(
                "logits",
                "hold NaN; the model's weights are broken",
            ));
        }
        if self.options.repetition_penalty == 1.0 {
            return self.draw(logits);
        }
        let mut penalized = logits.to_vec();
        let penalty = self.options.repetition_penalty as f32;
        for &token in &self.seen {
            // A prompt may have tokens that the head does not know.
            if let Some(logit) = penalized.get_mut(token as usize) {
                *logit = match *logit < 0.0 {
                    true => *logit * penalty,
                    false => *logit / penalty,
                };
            }
        }
        let token = self.draw(&penalized)?;
        self.seen.insert(token);
        Ok(token)
    }

    fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |token: u32| logits[token as usize];
        // Descending, ties by the lower token.
        let descending = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
        if self.options.temperature == 0.0 {
            return order
                .into_iter()
                .min_by(descending)
                .ok_or_else(|| Error::tensor("logits", "are empty"));
        }
        order.sort_by(descending);
        order.truncate(self.options.top_k.unwrap_or(usize::MAX));
        let Some(&likeliest) = order.first() else {
            return Err(Error::tensor("logits", "are empty"));
        };
        let highest = f64::from(logit(likeliest));
        if !highest.is_finite() {
            return Err(Error::tensor(
                "logits",
                format!(
                    "have {highest} as their largest; the model's weights are broken, or a repetition penalty of {} is too far from 1",
                    self.options.repetition_penalty
                ),
            ));
        }
        let weight =
            |token: u32| ((f64::from(logit(token)) - highest) / self.options.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(|&token| weight(token)).collect();
        if let Some(top_p) = self.options.top_p {
            let wanted = top_p * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let enough = weights
                .iter()
                .position(|weight| {
                    sum += weight;
                    sum >= wanted
                })
                .map_or(weights.len(), |last| last + 1);
            weights.truncate(enough);
        }
        if let Some(min_p) = self.options.min_p {
            // The likeliest token has weight 1, and stays in any case.
            weights.truncate(weights.partition_point(|&weight| weight >= min_p).max(1));
        }
        let mut point = self.random.random::<f64>() * weights.iter().sum::<f64>();
        for (&token, weight) in order.iter().zip(&weights) {
            point -= weight;
            if point < 0.0 {
                return Ok(token);
            }
        }
        // Rounding may leave the point a hair beyond the last weight.
        Ok(order[weights.len() - 1])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TIMES: usize = 20_000;

    /// Probabilities 0.1, 0.2, 0.5 and 0.2.
    fn logits() -> [f32; 4] {
        [1.0_f32, 2.0, 5.0, 2.0].map(f32::ln)
    }

    fn drawn() -> GenerateOptions {
        GenerateOptions {
            temperature: 1.0,
            seed: 7,
            ..Default::default()
        }
    }

    fn draw(options: &GenerateOptions, number: u64, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options, number, &[]);
        (0..times)
            .map(|_| sampler.choose(logits).unwrap())
            .collect()
    }

    /// Holds the shares of the tokens that are drawn after a prompt against expected ones.
    fn shares(options: &GenerateOptions, prompt: &[u32], logits: &[f32], expected: &[f64]) {
        let mut counts = vec![0; logits.len()];
        for number in 0..TIMES as u64 {
            let token = Sampler::new(options, number, prompt).choose(logits);
            counts[token.unwrap() as usize] += 1;
        }
        for (token, (&count, &share)) in counts.iter().zip(expected).enumerate() {
            let found = f64::from(count) / TIMES as f64;
            // Five standard deviations.
            let allowed = 5.0 * (share * (1.0 - share) / TIMES as f64).sqrt();
            assert!(
                (found - share).abs() <= allowed,
                "{options:?}, token {token}: {found}, expected {share}"
            );
        }
    }

    #[test]
    fn sampling_follows_the_probabilities_and_the_seed() {
        let options = drawn();
        let of_number = |number| draw(&options, number, &logits(), TIMES);
        assert_eq!(of_number(0), of_number(0));
        assert_ne!(of_number(0), of_number(1));
        let other = GenerateOptions { seed: 8, ..drawn() };
        assert_ne!(of_number(0), draw(&other, 0, &logits(), TIMES));
        for (token, share) in [(0, 0.1), (1, 0.2), (2, 0.5), (3, 0.2)] {
            let count = of_number(3).iter().filter(|&&t| t == token).count();
            let found = count as f64 / TIMES as f64;
            assert!((found - share).abs() < 0.02, "token {token}: {found}");
        }
        let greedy = GenerateOptions {
            temperature: 0.0,
            ..drawn()
        };
        assert_eq!(draw(&greedy, 0, &[1.0, 3.0, 3.0], 1), [1]);
    }

    #[test]
    fn each_option_gives_the_distribution_worked_out_by_hand() {
        let with = |change: &dyn Fn(&mut GenerateOptions)| {
            let mut options = drawn();
            change(&mut options);
            options
        };
        let shares = |change: &dyn Fn(&mut GenerateOptions), expected: [f64; 4]| {
            shares(&with(change), &[], &logits(), &expected);
        };
        shares(&|_| {}, [0.1, 0.2, 0.5, 0.2]);
        // Square roots of 1, 2, 5, 2 over their sum.
        let roots = [1.0_f64, 2.0, 5.0, 2.0].map(f64::sqrt);
        let sum: f64 = roots.iter().sum();
        shares(&|o| o.temperature = 2.0, roots.map(|root| root / sum));
        shares(&|o| o.top_k = Some(2), [0.0, 2.0 / 7.0, 5.0 / 7.0, 0.0]);
        shares(&|o| o.top_p = Some(0.5), [0.0, 0.0, 1.0, 0.0]);
        shares(
            &|o| o.top_p = Some(0.85),
            [0.0, 2.0 / 9.0, 5.0 / 9.0, 2.0 / 9.0],
        );
        // 0.2 is 0.4 of the likeliest's 0.5, and 0.1 is 0.2 of it.
        shares(
            &|o| o.min_p = Some(0.3),
            [0.0, 2.0 / 9.0, 5.0 / 9.0, 2.0 / 9.0],
        );
        shares(&|o| o.min_p = Some(0.1), [0.1, 0.2, 0.5, 0.2]);
        shares(&|o| o.min_p = Some(0.0), [0.1, 0.2, 0.5, 0.2]);
        shares(&|o| o.min_p = Some(0.5), [0.0, 0.0, 1.0, 0.0]);
        shares(&|o| o.min_p = Some(1.0), [0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn min_p_looks_at_probabilities_after_the_temperature() {
        // At temperature 2 the smaller ones have sqrt(2/5) = 0.63 and sqrt(1/5) = 0.45 of the likeliest's probability.
        let options = GenerateOptions {
            temperature: 2.0,
            min_p: Some(0.5),
            ..drawn()
        };
        let [two, five] = [2.0_f64.sqrt(), 5.0_f64.sqrt()];
        let sum = 2.0 * two + five;
        let expected = [0.0, two / sum, five / sum, two / sum];
        shares(&options, &[], &logits(), &expected);
    }

    #[test]
    fn the_penalty_divides_positive_logits_and_multiplies_negative_ones() {
        // With penalty 2: 2 becomes 1, -1 becomes -2; token 9 is not in the vocabulary.
        let options = GenerateOptions {
            repetition_penalty: 2.0,
            ..drawn()
        };
        let expected = [1.0_f64, 2.0, -2.0, -1.0].map(f64::exp);
        let sum: f64 = expected.iter().sum();
        let expected = expected.map(|weight| weight / sum);
        shares(&options, &[0, 2, 0, 9], &[2.0, 2.0, -1.0, -1.0], &expected);
        // New tokens count like those of the prompt, once each; and so at temperature 0.
        let greedy = GenerateOptions {
            temperature: 0.0,
            ..options
        };
        let mut sampler = Sampler::new(&greedy, 0, &[0]);
        let logits = [3.5, 3.0, 1.6, 0.0];
        let chosen: Vec<u32> = (0..4).map(|_| sampler.choose(&logits).unwrap()).collect();
        assert_eq!(chosen, [1, 0, 0, 0]);
    }

    #[test]
    fn broken_logits_are_errors() {
        let options = drawn();
        let mut sampler = Sampler::new(&options, 0, &[]);
        assert!(sampler.choose(&[1.0, f32::NAN]).is_err());
        assert!(sampler.choose(&[]).is_err());
    }
}
