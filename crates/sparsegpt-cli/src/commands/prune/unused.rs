//! Flags that were given and change nothing: a remark for each.

use std::path::Path;

use sparsegpt_models::calibration::holds_token_ids;
use sparsegpt_models::decoder::{ModelKind, TransformerConfig};
use sparsegpt_models::text::TextFormat;

use super::PruneFlags;
use crate::console::Console;

/// What the flags alone tell.
pub(super) fn tell(flags: &PruneFlags, console: &Console) {
    let (layer, plan) = (&flags.layer, &flags.plan);
    if layer.pattern.is_empty() && plan.rule.is_empty() && plan.pattern_list.is_none() {
        layer.tell_no_choice(flags.masks.is_some(), console);
    }
    if flags.need_calibration() {
        return;
    }
    let given = [
        ("--calibration", flags.calibration.is_some()),
        ("--calibration-mode", flags.calibration_mode.is_some()),
        ("--text-key", flags.text_key.is_some()),
        ("--samples", flags.samples.is_some()),
        ("--sequence-length", flags.sequence_length.is_some()),
        ("--seed", flags.seed.is_some()),
        ("--mask-rate", flags.mask_rate.is_some()),
        ("--mask-token", flags.mask_token.is_some()),
        ("--held-out", flags.held_out.is_some()),
        ("--true-sequential", plan.true_sequential == Some(true)),
        (
            "--dense-targets",
            plan.dense_targets.is_some_and(|by| by > 0.0),
        ),
        ("--starved-experts", plan.starved_experts.is_some()),
        ("--min-expert-tokens", plan.min_expert_tokens.is_some()),
    ];
    let reason = format!("--method {} needs no calibration data", layer.method());
    console.none_read(&given, &reason);
}

/// What the calibration file and the model tell besides.
pub(super) fn tell_of_calibration(
    file: &Path,
    config: &TransformerConfig,
    flags: &PruneFlags,
    console: &Console,
) {
    let hides = match flags.mask_rate {
        Some(rate) => rate.fraction() > 0.0,
        None => !holds_token_ids(file),
    };
    if holds_token_ids(file) {
        let given = [
            ("--calibration-mode", flags.calibration_mode.is_some()),
            ("--text-key", flags.text_key.is_some()),
            ("--seed", flags.seed.is_some() && !hides),
        ];
        console.none_read(&given, &format!("{} holds token ids", file.display()));
    } else {
        tell_of_text(file, flags.text_key.as_deref(), console);
    }
    if config.kind() == ModelKind::Encoder && !hides {
        let given = [("--mask-token", flags.mask_token.is_some())];
        console.none_read(&given, "no tokens are hidden (--mask-rate)");
    }
    if config.experts.is_none() {
        let given = [
            ("--starved-experts", flags.plan.starved_experts.is_some()),
            (
                "--min-expert-tokens",
                flags.plan.min_expert_tokens.is_some(),
            ),
        ];
        console.none_read(&given, "the model has no experts");
    }
}

/// Of a file of text, whatever it is for.
pub(crate) fn tell_of_text(file: &Path, text_key: Option<&str>, console: &Console) {
    // A file that cannot be read is told of where it is read.
    if text_key.is_some() && TextFormat::of(file).is_ok_and(|format| format == TextFormat::Plain) {
        let reason = format!("{} is plain text, without keys or columns", file.display());
        console.not_read("--text-key", &reason);
    }
}
