//! Tests of packed layers: written as a checkpoint, and unpacked again by the formulas that their readers publish.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use ndarray::arr2;
use sparsegpt::backend::Host;
use sparsegpt::quant::Quantizer;
use sparsegpt::{FinishedLayer, LayerSettings, Pattern, Solver, UniformGrid};
use tempfile::tempdir;

use super::*;
use crate::checkpoint::fixtures::{Model, tensor_of};
use crate::checkpoint::{
    Checkpoint, CheckpointSource, ExpectedLayer, OutputOptions, WrittenCheckpoint,
};

const LAYER: &str = "model.layers.0.mlp.up_proj";
const ROWS: usize = 32;
const COLS: usize = 64;

fn weights() -> Array2<f32> {
    Array2::from_shape_fn((ROWS, COLS), |(r, c)| {
        let value = ((r * 31 + c * 17) % 41) as f32 / 64.0 - 0.3;
        // A row that is positive throughout: its grids would have zero point 0.
        if r == 3 { value.abs() + 0.01 } else { value }
    })
}

fn pruned(scheme: &PackedScheme) -> PrunedLayer {
    let solver = Solver::new(Host);
    let mut hessian = solver.hessian(COLS).unwrap();
    let tokens = Array2::from_shape_fn((96, COLS), |(t, c)| {
        ((t * 13 + c * 7 + t * c) % 29) as f32 - 14.0
    });
    hessian.update(tokens.view()).unwrap();
    let mut grid = UniformGrid::new(scheme.bits)
        .unwrap()
        .with_symmetric(scheme.symmetric);
    if let Some(size) = scheme.group_size {
        grid = grid.with_groups(size);
    }
    let settings = LayerSettings::new(Pattern::n_of_m(2, 4).unwrap());
    let settings = match scheme.format {
        PackedFormat::Gptq if !scheme.symmetric => settings.with_quantizer(LeastZero::new(grid)),
        _ => settings.with_quantizer(grid),
    };
    let settings = match scheme.permuted {
        true => settings.with_order(sparsegpt::solver::ColumnOrder::Descending),
        false => settings,
    };
    solver
        .prune(weights().view(), &mut hessian, &settings)
        .unwrap()
}

fn shapes() -> Vec<PackedShape> {
    vec![PackedShape {
        name: LAYER.to_owned(),
        rows: ROWS,
        cols: COLS,
    }]
}

/// A checkpoint with one packed layer and one matrix that stays, and what the layer is.
fn written(
    scheme: PackedScheme,
    root: &Path,
) -> (Result<WrittenCheckpoint>, Checkpoint, PrunedLayer) {
    let folder = root.join("model");
    let values: Vec<f32> = weights().into_iter().collect();
    Model::new(vec![
        tensor_of(
            &format!("{LAYER}.weight"),
            Dtype::F16,
            &[ROWS, COLS],
            &values,
        ),
        tensor_of("model.embed_tokens.weight", Dtype::F16, &[2, 3], &[1.0; 6]),
    ])
    .write(&folder);
    let source = Checkpoint::open(&folder).unwrap();
    let options = OutputOptions::default();
    let mut writer = source
        .create_packed_output(&root.join("out"), &options, scheme, shapes())
        .unwrap();
    let mut layer = pruned(&scheme);
    round_to_scales(LAYER, &mut layer, writer.scale_type(LAYER).unwrap()).unwrap();
    writer
        .store_packed(LAYER, layer.quantized.as_ref().unwrap())
        .unwrap();
    let expected = ExpectedLayer {
        tensor: format!("{LAYER}.weight"),
        zeros: layer.report.zeros,
        pattern: Some((2, 4)),
    };
    let result = writer.finish(&[expected]);
    let out = Checkpoint::as_stored(&root.join("out")).unwrap();
    (result, out, layer)
}

/// The weights of the written folder, opened as the float checkpoint that it stands for. Readers that compute in f16 round them.
fn read_as_model(root: &Path) -> Array2<f32> {
    let model = Checkpoint::open(&root.join("out")).unwrap();
    assert!(model.config().get("quantization_config").is_none());
    let tensors = model.tensors();
    let name = format!("{LAYER}.weight");
    assert_eq!(tensors.names(), ["model.embed_tokens.weight", &name]);
    let info = tensors.info(&name).unwrap();
    assert_eq!((info.dtype, info.shape), (Dtype::F32, vec![ROWS, COLS]));
    let values = tensors.read_f32(&name).unwrap();
    if let Some(layer) = tensors.layer(&name).unwrap() {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        assert_eq!(layer.unpack_bytes(false), bytes);
    }
    let rounded = values
        .into_iter()
        .map(|value| f16::from_f32(value).to_f32());
    Array2::from_shape_vec((ROWS, COLS), rounded.collect()).unwrap()
}

fn words_of(source: &dyn CheckpointSource, part: &str) -> Vec<u32> {
    let bytes = source
        .stored_bytes(&format!("{LAYER}.{part}"))
        .unwrap()
        .unwrap();
    let words = bytes.as_chunks::<4>().0.iter();
    words.map(|&word| u32::from_le_bytes(word)).collect()
}

/// `TorchQuantLinear.dequantize_weight` of GPTQModel for 2, 4 and 8 bits, with the 1 that version 1 has taken off the zeros.
fn read_gptq(source: &dyn CheckpointSource, bits: u32) -> Array2<f32> {
    let (weight, zeros) = (words_of(source, "qweight"), words_of(source, "qzeros"));
    let groups = words_of(source, "g_idx");
    let scales = source.read_f32(&format!("{LAYER}.scales")).unwrap();
    let (each, mask) = ((32 / bits) as usize, (1 << bits) - 1);
    Array2::from_shape_fn((ROWS, COLS), |(row, col)| {
        let group = groups[col] as usize;
        let code = weight[col / each * ROWS + row] >> (bits as usize * (col % each)) & mask;
        let zero =
            zeros[group * (ROWS / each) + row / each] >> (bits as usize * (row % each)) & mask;
        let level = code as f32 - (zero + 1) as f32;
        f16::from_f32(scales[group * ROWS + row] * level).to_f32()
    })
}

/// Element i of a row stands at bit i·bits of it (`unpack_from_int32` of compressed-tensors).
fn field(row: &[u32], bits: u32, at: usize) -> i32 {
    let bit = at * bits as usize;
    let low = u64::from(row[bit / 32]);
    let high = row.get(bit / 32 + 1).map_or(0, |&word| u64::from(word));
    let code = (low | high << 32) >> (bit % 32) & ((1 << bits) - 1);
    code as i32 - (1 << (bits - 1))
}

fn read_compressed(source: &dyn CheckpointSource, scheme: &PackedScheme) -> Array2<f32> {
    let bits = scheme.bits;
    let packed = words_of(source, "weight_packed");
    let scales = source.read_f32(&format!("{LAYER}.weight_scale")).unwrap();
    let groups = scales.len() / ROWS;
    let zeros = (!scheme.symmetric).then(|| words_of(source, "weight_zero_point"));
    let width = packed.len() / ROWS;
    Array2::from_shape_fn((ROWS, COLS), |(row, col)| {
        let group = col / (COLS / groups);
        let code = field(&packed[row * width..(row + 1) * width], bits, col);
        let zero = zeros.as_ref().map_or(0, |zeros| {
            let column: Vec<u32> = zeros.iter().skip(group).step_by(groups).copied().collect();
            field(&column, bits, row)
        });
        f16::from_f32(scales[row * groups + group] * (code - zero) as f32).to_f32()
    })
}

fn scheme(format: PackedFormat, bits: u32) -> PackedScheme {
    PackedScheme {
        format,
        bits,
        group_size: Some(16),
        symmetric: false,
        permuted: false,
    }
}

fn bits_of(matrix: &Array2<f32>) -> Vec<u32> {
    matrix.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn gptq_reads_the_same_bits() {
    for bits in [2, 4, 8] {
        for (symmetric, group_size, permuted) in [
            (false, Some(16), false),
            (true, Some(32), false),
            (false, None, false),
            (false, Some(16), true),
        ] {
            let root = tempdir().unwrap();
            let scheme = PackedScheme {
                symmetric,
                group_size,
                permuted,
                ..scheme(PackedFormat::Gptq, bits)
            };
            let (result, out, layer) = written(scheme, root.path());
            result.unwrap();
            let read = read_gptq(out.source.as_ref(), bits);
            assert_eq!(bits_of(&read), bits_of(&layer.weights), "{scheme:?}");
            let read = read_as_model(root.path());
            assert_eq!(bits_of(&read), bits_of(&layer.weights), "{scheme:?}");
            let config = &out.config()["quantization_config"];
            assert_eq!(config["quant_method"], "gptq");
            assert_eq!(config["desc_act"], permuted);
            assert_eq!(config["dynamic"].as_object().unwrap().len(), 1);
            let groups = words_of(out.source.as_ref(), "g_idx");
            assert_eq!(!groups.is_sorted(), permuted);
        }
    }
}

#[test]
fn compressed_tensors_reads_the_same_bits() {
    for bits in 2..=8 {
        for (symmetric, group_size) in [(false, Some(16)), (true, Some(64)), (false, None)] {
            let root = tempdir().unwrap();
            let scheme = PackedScheme {
                symmetric,
                group_size,
                ..scheme(PackedFormat::CompressedTensors, bits)
            };
            let (result, out, layer) = written(scheme, root.path());
            result.unwrap();
            let read = read_compressed(out.source.as_ref(), &scheme);
            assert_eq!(bits_of(&read), bits_of(&layer.weights), "{scheme:?}");
            let read = read_as_model(root.path());
            assert_eq!(bits_of(&read), bits_of(&layer.weights), "{scheme:?}");
            let shape = out
                .source
                .stored_bytes(&format!("{LAYER}.weight_shape"))
                .unwrap();
            let shape = shape.unwrap();
            let shape: Vec<i64> = shape
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&n| i64::from_le_bytes(n))
                .collect();
            assert_eq!(shape, [ROWS as i64, COLS as i64]);
            let config = &out.config()["quantization_config"];
            assert_eq!(config["format"], "pack-quantized");
            assert_eq!(
                config["config_groups"]["group_0"]["weights"]["num_bits"],
                bits
            );
            assert!(
                config["ignore"]
                    .as_array()
                    .unwrap()
                    .contains(&"lm_head".into())
            );
        }
    }
}

#[test]
fn no_grid_of_gptq_has_the_zero_point_that_its_readers_take_differently() {
    let positive = arr2(&[[0.5_f32, 1.0, 7.0, 0.25]]);
    let grid = UniformGrid::new(3).unwrap();
    assert_eq!(Quantizer::fit(&grid, positive.view()).unwrap().zero[0], 0.0);
    let fitted = LeastZero::new(grid.clone()).fit(positive.view()).unwrap();
    assert_eq!(fitted.zero[0], 1.0);
    // The largest weight is still a level.
    assert!((fitted.scale[0] * 6.0 - 7.0).abs() < 1e-5);
    let mixed = arr2(&[[-2.5_f32, 1.0, 7.0, 0.25]]);
    let of_both = [
        Quantizer::fit(&grid, mixed.view()).unwrap(),
        LeastZero::new(grid).fit(mixed.view()).unwrap(),
    ];
    assert_eq!(of_both[0], of_both[1]);

    let scheme = scheme(PackedFormat::Gptq, 4);
    let packed = Packed {
        scheme,
        layers: shapes().into_iter().map(|l| (l.name.clone(), l)).collect(),
    };
    let mut layer = pruned(&scheme).quantized.unwrap();
    assert!(layer.zero.iter().all(|&zero| zero >= 1.0));
    packed.encode(LAYER, &layer, Dtype::F16).unwrap();
    layer.zero[[3, 1]] = 0.0;
    let error = packed.encode(LAYER, &layer, Dtype::F16).unwrap_err();
    assert!(error.to_string().contains("row 3, group 1"), "{error}");
}

#[test]
fn a_wrong_count_of_zeros_is_noticed() {
    let root = tempdir().unwrap();
    let scheme = scheme(PackedFormat::Gptq, 4);
    written(scheme, root.path()).0.unwrap();
    let source = Checkpoint::open(&root.path().join("model")).unwrap();
    let mut layer = pruned(&scheme);
    for (spoiled, named) in [(true, "2:4"), (false, "zeros reported")] {
        let out = root.path().join("other");
        let mut writer = source
            .create_packed_output(&out, &OutputOptions::default(), scheme, shapes())
            .unwrap();
        let quantized = layer.quantized.as_mut().unwrap();
        let mut zeros = layer.report.zeros;
        if spoiled {
            // One zero of the first group moves to the second.
            let zero = |col: usize| quantized.codes[[0, col]] == quantized.zero[[0, 0]] as u8;
            let gone = (0..4).find(|&col| zero(col)).unwrap();
            let come = (4..8).find(|&col| !zero(col)).unwrap();
            quantized.codes.swap([0, gone], [0, come]);
        } else {
            zeros += 1;
        }
        writer.store_packed(LAYER, quantized).unwrap();
        let expected = ExpectedLayer {
            tensor: format!("{LAYER}.weight"),
            zeros,
            pattern: Some((2, 4)),
        };
        let error = writer.finish(&[expected]).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_what_it_can() {
    let layers = |sizes: &[[usize; 2]]| -> Vec<PackedShape> {
        let shape = |(at, &[rows, cols]): (usize, &[usize; 2])| PackedShape {
            name: format!("layer.{at}"),
            rows,
            cols,
        };
        sizes.iter().enumerate().map(shape).collect()
    };
    let check = |scheme: PackedScheme, sizes: &[[usize; 2]]| {
        scheme.check(&layers(sizes)).map_err(|e| e.to_string())
    };
    let gptq = scheme(PackedFormat::Gptq, 4);
    let of = |size| PackedScheme {
        group_size: Some(size),
        ..gptq
    };
    let sizes = [[64, 576], [64, 192]];
    check(of(64), &sizes).unwrap();
    let error = check(of(128), &sizes).unwrap_err();
    for named in ["layer.0", "576 columns", "8, 16, 24, 32, 48, 64, 96, 192"] {
        assert!(error.contains(named), "{error}");
    }
    assert!(
        check(of(8), &[[64, 12]])
            .unwrap_err()
            .contains("no multiples")
    );
    assert!(check(of(0), &sizes).is_err());
    assert!(
        check(of(4), &[[60, 64]])
            .unwrap_err()
            .contains("32-bit words")
    );
    let bits = PackedScheme { bits: 5, ..gptq };
    assert!(check(bits, &sizes).unwrap_err().contains("[2, 3, 4, 8]"));
    let permuted = PackedScheme {
        permuted: true,
        ..scheme(PackedFormat::CompressedTensors, 4)
    };
    assert!(
        check(permuted, &sizes)
            .unwrap_err()
            .contains("--static-groups")
    );
}

#[test]
fn scales_that_their_type_does_not_hold_are_named() {
    let scheme = scheme(PackedFormat::Gptq, 4);
    let layer = pruned(&scheme);
    for factor in [1e-9, 1e9] {
        let mut layer = FinishedLayer::new(0, 0, 0, None, layer.clone()).pruned;
        let quantized = layer.quantized.as_mut().unwrap();
        quantized.scale.mapv_inplace(|scale| scale * factor);
        let error = round_to_scales(LAYER, &mut layer, Dtype::F16).unwrap_err();
        assert!(error.to_string().contains(LAYER), "{error}");
    }
}

/// A folder in GPTQ's layout, made by hand: 8 x 8, groups of 4 columns, every code 5, zero points of 2 as version 2 stores them.
struct ByHand {
    config: serde_json::Value,
    tensors: Vec<crate::checkpoint::fixtures::Tensor>,
}

impl ByHand {
    fn new() -> Self {
        let words = |name: &str, shape: &[usize], word: u32| crate::checkpoint::fixtures::Tensor {
            name: format!("{LAYER}.{name}"),
            dtype: Dtype::I32,
            shape: shape.to_vec(),
            bytes: word.to_le_bytes().repeat(shape.iter().product()),
        };
        Self {
            config: serde_json::json!({
                "quant_method": "gptq", "bits": 4, "group_size": 4, "checkpoint_format": "gptq_v2",
            }),
            tensors: vec![
                words("qweight", &[1, 8], 0x5555_5555),
                words("qzeros", &[2, 1], 0x2222_2222),
                tensor_of(&format!("{LAYER}.scales"), Dtype::F16, &[2, 8], &[0.5; 16]),
            ],
        }
    }

    /// The first weight, or what is wrong.
    fn read(self) -> std::result::Result<f32, String> {
        let folder = tempdir().unwrap();
        let mut model = Model::new(self.tensors);
        model.config["quantization_config"] = self.config;
        model.write(folder.path());
        let read = || {
            let model = Checkpoint::open(folder.path())?;
            let values = model.tensors().read_f32(&format!("{LAYER}.weight"))?;
            assert_eq!(values.len(), 64);
            Ok(values[0])
        };
        read().map_err(|error: Error| error.to_string())
    }
}

#[test]
fn versions_of_gptq_differ_in_their_zero_points() {
    assert_eq!(ByHand::new().read(), Ok(1.5));
    for format in [serde_json::json!("gptq"), serde_json::Value::Null] {
        let mut first = ByHand::new();
        first.config["checkpoint_format"] = format;
        assert_eq!(first.read(), Ok(1.0));
    }
}

#[test]
fn damaged_quantized_layers_are_named() {
    let refused = |change: &dyn Fn(&mut ByHand), named: &str| {
        let mut folder = ByHand::new();
        change(&mut folder);
        let error = folder.read().unwrap_err();
        assert!(error.contains(named), "expected {named:?} in {error}");
    };
    refused(&|f| f.config["quant_method"] = "awq".into(), "quant_method");
    refused(&|f| f.config["bits"] = 5.into(), "quantization_config.bits");
    refused(&|f| f.config["group_size"] = 0.into(), "group_size");
    refused(
        &|f| f.config["checkpoint_format"] = "marlin".into(),
        "marlin",
    );
    refused(&|f| f.config = serde_json::json!({}), "quant_method");
    refused(&|f| f.config["group_size"] = 2.into(), "for 2");
    refused(&|f| drop(f.tensors.remove(0)), "qweight");
    refused(&|f| drop(f.tensors.remove(1)), "qzeros");
    refused(&|f| f.tensors[0].dtype = Dtype::U32, "qweight");
    refused(&|f| f.tensors[0].shape = vec![8], "qweight");
    refused(&|f| f.tensors[1].shape = vec![1, 2], "qzeros");
    refused(
        &|f| f.tensors[2] = tensor_of(&format!("{LAYER}.scales"), Dtype::F32, &[8, 2], &[0.5; 16]),
        "scales",
    );
    refused(
        &|f| f.tensors[2].bytes[..2].copy_from_slice(&f16::NAN.to_le_bytes()),
        "NaN",
    );
    refused(
        &|f| {
            let weight = tensor_of(&format!("{LAYER}.weight"), Dtype::F32, &[1], &[0.0]);
            f.tensors.push(weight);
        },
        "beside its own quantized form",
    );
}
