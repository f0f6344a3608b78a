//! Every kernel against the formulas: types, instruction sets, shapes, densities, numbers of tokens.

#![allow(clippy::unwrap_used)]

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, s};
use proptest::prelude::*;
use sparsegpt_runtime::half::{bf16, f16};
use sparsegpt_runtime::{
    Codes, DenseMatrix, Level, PackedMatrix, PatternMatrix, QuantizedDense, QuantizedLinear,
    QuantizedMatrix, SparseLinear, Value, Width, host,
};

/// The next of a sequence of numbers, of magnitudes up to 1.
fn draw(state: &mut u64) -> f32 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Zeros and columns of a group.
const PATTERNS: [(usize, usize); 4] = [(2, 4), (4, 8), (1, 4), (2, 8)];

struct Case<V> {
    weight: Array2<V>,
    x: Array2<f32>,
    bias: Array1<f32>,
}

impl<V: Value> Case<V> {
    /// Weights of this density; the first row is full and the last is empty, where there are so many.
    fn new((rows, cols): (usize, usize), tokens: usize, density: f32, seed: u64) -> Self {
        let mut state = seed;
        let mut weight = Array2::from_shape_simple_fn((rows, cols), || {
            let (kept, value) = (draw(&mut state), draw(&mut state));
            V::from_f32(if kept < 2.0 * density - 1.0 {
                value
            } else {
                0.0
            })
        });
        if rows > 2 {
            weight
                .row_mut(0)
                .mapv_inplace(|_| V::from_f32(draw(&mut state)));
            weight.row_mut(rows - 1).fill(V::from_f32(0.0));
        }
        let x = Array2::from_shape_simple_fn((tokens, cols), || draw(&mut state));
        let bias = Array1::from_shape_simple_fn(rows, || draw(&mut state));
        Self { weight, x, bias }
    }

    /// The same weights with zeros put in until every `group` columns have `zeros`.
    fn with_pattern(mut self, zeros: usize, group: usize) -> Self {
        for (row, mut weights) in self.weight.rows_mut().into_iter().enumerate() {
            for (number, mut columns) in weights.exact_chunks_mut(group).into_iter().enumerate() {
                for place in 0..zeros {
                    columns[(place * 3 + row + number) % group] = V::from_f32(0.0);
                }
            }
        }
        self
    }

    fn layers(&self, bias: bool) -> Vec<SparseLinear<V>> {
        let bias = bias.then(|| self.bias.to_vec());
        let packed = PackedMatrix::from_dense(self.weight.view());
        let dense = DenseMatrix::from_dense(self.weight.view());
        let mut layers = vec![
            SparseLinear::sparse(packed, bias.clone()).unwrap(),
            SparseLinear::dense(dense, bias.clone()).unwrap(),
        ];
        for (zeros, group) in PATTERNS {
            if let Some(weight) =
                PatternMatrix::from_dense(self.weight.view(), zeros, group).unwrap()
            {
                layers.push(SparseLinear::pattern(weight, bias.clone()).unwrap());
            }
        }
        layers
    }

    /// 16 units in the last place of Σ|wx| + |b|.
    fn check(&self, y: ArrayView2<'_, f32>, bias: Option<ArrayView1<'_, f32>>, what: &str) {
        let expected = host::matrix_tokens(self.weight.view(), self.x.view(), bias);
        let magnitudes = self.weight.mapv(|value| value.to_f32().abs());
        let bound = host::matrix_tokens(
            magnitudes.view(),
            self.x.mapv(f32::abs).view(),
            bias.map(|bias| bias.mapv(f32::abs))
                .as_ref()
                .map(|bias| bias.view()),
        );
        assert_eq!(y.dim(), expected.dim(), "{what}");
        for ((place, &found), (expected, bound)) in
            y.indexed_iter().zip(expected.iter().zip(&bound))
        {
            let error = (f64::from(found) - expected).abs();
            let most = 16.0 * f64::from(f32::EPSILON) * bound;
            assert!(
                error <= most,
                "{what} at {place:?}: {found}, expected {expected}: {error} > {most}"
            );
        }
    }

    fn holds(&self) {
        for level in Level::available() {
            for with_bias in [false, true] {
                for layer in self.layers(with_bias) {
                    let layer = layer.at_level(level).unwrap();
                    let what = format!(
                        "{} {:?} x {} tokens on {level}, {}",
                        V::NAME,
                        self.weight.dim(),
                        self.x.nrows(),
                        layer.storage(),
                    );
                    let bias = with_bias.then(|| self.bias.view());
                    self.check(layer.forward(self.x.view()).unwrap().view(), bias, &what);
                }
            }
        }
    }
}

fn holds_for_all_types(shape: (usize, usize), tokens: usize, density: f32, seed: u64) {
    Case::<f32>::new(shape, tokens, density, seed).holds();
    Case::<bf16>::new(shape, tokens, density, seed).holds();
    Case::<f16>::new(shape, tokens, density, seed).holds();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_those_of_the_formulas(
        rows in 0_usize..90,
        cols in 0_usize..300,
        tokens in 0_usize..40,
        density in 0.0_f32..=1.0,
        seed in any::<u64>(),
    ) {
        holds_for_all_types((rows, cols), tokens, density, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn patterns_are_products_too(
        rows in 1_usize..60,
        eights in 0_usize..30,
        tokens in prop_oneof![4 => 0_usize..40, 1 => 40_usize..90],
        density in 0.6_f32..=1.0,
        seed in any::<u64>(),
    ) {
        fn holds<V: Value>(shape: (usize, usize), tokens: usize, density: f32, seed: u64) {
            for (zeros, group) in PATTERNS {
                let case = Case::<V>::new(shape, tokens, density, seed).with_pattern(zeros, group);
                assert!(case.layers(false).len() > 2, "no layer by {zeros}:{group}");
                case.holds();
            }
        }
        let shape = (rows, eights * 8);
        holds::<f32>(shape, tokens, density, seed);
        holds::<bf16>(shape, tokens, density, seed);
        holds::<f16>(shape, tokens, density, seed);
    }

    #[test]
    fn codes_are_products_too(
        (rows, cols) in (0_usize..60, 0_usize..300),
        tokens in prop_oneof![4 => 0_usize..40, 1 => 40_usize..90],
        percent in 0_u64..=100,
        wide in any::<bool>(),
        symmetric in any::<bool>(),
        group in prop_oneof![Just(64_usize), Just(128), Just(1000)],
        seed in any::<u64>(),
    ) {
        let width = if wide { Width::Eight } else { Width::Four };
        codes_hold((rows, cols), tokens, percent, (width, symmetric, group), seed);
    }
}

/// Codes of a grid, `percent` of them other than zeros; grids of so many columns, whose scales may be zero or negative.
fn codes_hold(
    (rows, cols): (usize, usize),
    tokens: usize,
    percent: u64,
    (width, symmetric, group): (Width, bool, usize),
    seed: u64,
) {
    let most = (1_u64 << width.bits()) - 1;
    let mut state = seed;
    let mut below =
        |end: u64| ((f64::from(draw(&mut state)) + 1.0) / 2.0 * end as f64) as u64 % end;
    let grid = (rows, cols.div_ceil(group));
    let zeros = Array2::from_shape_simple_fn(grid, || {
        if symmetric {
            most.div_ceil(2) as u8
        } else {
            below(most + 1) as u8
        }
    });
    let codes = Array2::from_shape_fn((rows, cols), |(row, col)| {
        if below(100) < percent {
            below(most + 1) as u8
        } else {
            zeros[[row, col / group]]
        }
    });
    let scales = Array2::from_shape_simple_fn(grid, || match below(16) {
        0 => 0.0,
        1 => -0.0,
        2 => -0.5,
        _ => 0.01 + below(1000) as f32 / 999.0,
    });
    let stored = codes
        .indexed_iter()
        .filter(|((row, col), code)| **code != zeros[[*row, col / group]])
        .count();
    let codes = Codes {
        width,
        codes: codes.view(),
        scales: scales.view(),
        zeros: zeros.view(),
        group,
    };
    let plain = Case::<f32>::new((rows, cols), tokens, 1.0, seed);
    let case = Case {
        weight: codes.to_f32(),
        ..plain
    };
    for level in Level::available() {
        for with_bias in [false, true] {
            let bias = with_bias.then(|| case.bias.to_vec());
            let packed = QuantizedMatrix::from_codes(&codes).unwrap();
            assert_eq!(packed.unpack(), case.weight.clone());
            assert_eq!(packed.nonzeros(), stored);
            let dense = QuantizedDense::from_codes(&codes).unwrap();
            assert_eq!(dense.unpack(), case.weight.clone());
            for layer in [
                QuantizedLinear::sparse(packed, bias.clone()).unwrap(),
                QuantizedLinear::dense(dense, bias).unwrap(),
            ] {
                let layer = layer.at_level(level).unwrap();
                let what = format!("{width:?} {rows} x {cols} on {level}, {}", layer.storage());
                let y = layer.forward(case.x.view()).unwrap();
                case.check(y.view(), with_bias.then(|| case.bias.view()), &what);
            }
        }
    }
}

#[test]
fn codes_that_do_not_fit_are_errors() {
    let codes = Array2::from_elem((2, 100), 3_u8);
    let (scales, zeros) = (
        Array2::from_elem((2, 2), 1.0),
        Array2::from_elem((2, 2), 3_u8),
    );
    let sound = Codes {
        width: Width::Four,
        codes: codes.view(),
        scales: scales.view(),
        zeros: zeros.view(),
        group: 64,
    };
    let large = Array2::from_elem((2, 100), 16_u8);
    let narrow = Array2::from_elem((2, 1), 3_u8);
    let [infinite, no_number] = [f32::NEG_INFINITY, f32::NAN].map(|value| {
        let mut scales = scales.clone();
        scales[[1, 0]] = value;
        scales
    });
    for (changed, named) in [
        (
            Codes {
                scales: infinite.view(),
                ..sound
            },
            "finite scales, found -inf",
        ),
        (
            Codes {
                scales: no_number.view(),
                ..sound
            },
            "finite scales, found NaN",
        ),
        (Codes { group: 32, ..sound }, "groups of a multiple of 64"),
        (Codes { group: 0, ..sound }, "groups of a multiple of 64"),
        (
            Codes {
                group: 128,
                ..sound
            },
            "scales of 2 x 1",
        ),
        (
            Codes {
                codes: large.view(),
                ..sound
            },
            "up to 15, found 16",
        ),
        (
            Codes {
                zeros: narrow.view(),
                ..sound
            },
            "zeros of 2 x 2",
        ),
    ] {
        let error = QuantizedLinear::new(&changed, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains(named), "{error}: expected {named:?}");
        assert!(QuantizedDense::from_codes(&changed).is_err());
    }
    let layer = QuantizedLinear::new(&sound, None).unwrap();
    assert!(layer.storage().is_sparse());
    let bias = QuantizedLinear::new(&sound, Some(vec![0.0])).unwrap_err();
    assert_eq!(bias.to_string(), "bias: expected 2 values, found 1");
}

/// The levels that this processor lacks cannot be shown to work here; the test says so.
#[test]
fn levels_that_were_not_run_are_told() {
    for level in [Level::Avx2, Level::Avx512, Level::Avx512Vbmi2] {
        let weight = Array2::<f32>::zeros((1, 8));
        let layer = SparseLinear::new(weight.view(), None).unwrap();
        let there = Level::available().any(|other| other == level);
        if !there {
            eprintln!("skipped: this processor has no {level}; its kernels were not run");
        }
        assert_eq!(layer.at_level(level).is_ok(), there);
    }
}

#[test]
fn shapes_around_tiles_blocks_and_vectors() {
    for rows in [0, 1, 15, 16, 17, 65] {
        for cols in [0, 1, 7, 8, 63, 64, 65, 257] {
            for tokens in [1, 5] {
                holds_for_all_types((rows, cols), tokens, 0.5, (rows * cols + tokens) as u64);
            }
        }
    }
}

#[test]
fn every_number_of_tokens_around_the_tiles() {
    for tokens in (0..40).chain([55, 56, 57, 79, 80, 81, 104, 113, 144, 145, 160, 161, 400]) {
        holds_for_all_types((20, 70), tokens, 0.4, tokens as u64);
    }
}

#[test]
fn many_tokens_in_several_stretches_and_groups_of_tiles() {
    // Alone, a thread has tasks of six tiles here. Stretches of 256 KiB have 7 of the 16 blocks with AVX-512's tiles of 144 tokens, 14
    // with others' of 72.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.unwrap().install(|| {
        holds_for_all_types((390, 1000), 140, 0.4, 7);
        codes_hold((390, 1000), 140, 40, (Width::Four, false, 64), 7);
    });
}

#[test]
fn all_densities() {
    for percent in (0..=100).step_by(5) {
        let density = percent as f32 / 100.0;
        holds_for_all_types((33, 200), 1, density, percent);
        holds_for_all_types((33, 200), 24, density, percent);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case::<f32>::new((300, 700), 140, 0.5, 1);
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    };
    for layer in case.layers(true) {
        for tokens in [1, 12, 30, 140] {
            let x = case.x.slice(s![..tokens, ..]);
            let run = |threads| pool(threads).install(|| layer.forward(x).unwrap());
            let one = run(1);
            for threads in [2, 3] {
                let same = run(threads)
                    .iter()
                    .zip(&one)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{tokens} tokens, {threads} threads");
            }
        }
    }
}

/// So a model's step over a few sequences is that of each of them.
#[test]
fn a_few_tokens_have_the_bits_of_each_alone() {
    fn holds<V: Value>() {
        for rows in [20, 33] {
            let case = Case::<V>::new((rows, 330), 4, 0.5, 11);
            for layer in case.layers(true) {
                let together = layer.forward(case.x.view()).unwrap();
                for (token, x) in case.x.rows().into_iter().enumerate() {
                    let alone = layer.forward_one(x).unwrap();
                    assert_eq!(together.row(token), alone, "{} {rows} {token}", V::NAME);
                }
            }
        }
    }
    holds::<f32>();
    holds::<bf16>();
    holds::<f16>();
}

#[test]
fn infinities_and_nan_stay_in_their_row() {
    let mut case = Case::<f32>::new((40, 130), 1, 0.3, 5);
    for (row, value) in [(3, f32::NAN), (4, f32::INFINITY), (21, f32::NEG_INFINITY)] {
        // The last stored values of a row are followed by those of the next.
        case.weight.row_mut(row).fill(value);
    }
    for level in Level::available() {
        for layer in case.layers(false) {
            let layer = layer.at_level(level).unwrap();
            for tokens in [1, 9] {
                let x = Array2::from_elem((tokens, 130), 0.5);
                let y = layer.forward(x.view()).unwrap();
                for ((_, row), value) in y.indexed_iter() {
                    let finite = ![3, 4, 21].contains(&row);
                    assert_eq!(value.is_finite(), finite, "row {row} on {level}: {value}");
                }
            }
        }
    }
}

#[test]
fn activations_in_any_layout() {
    let case = Case::<f32>::new((20, 70), 12, 0.5, 3);
    let across = case.x.t().as_standard_layout().into_owned();
    for layer in case.layers(true) {
        let expected = layer.forward(case.x.view()).unwrap();
        assert_eq!(layer.forward(across.t()).unwrap(), expected);
        let one = layer.forward_one(across.column(3)).unwrap();
        let alone = layer.forward(case.x.slice(s![3..4, ..])).unwrap();
        assert_eq!(one, alone.row(0));
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let weight = Array2::<f32>::zeros((3, 5));
    let bias = Array1::zeros(4);
    let error = SparseLinear::new(weight.view(), Some(bias.view())).unwrap_err();
    assert_eq!(error.to_string(), "bias: expected 3 values, found 4");
    let layer = SparseLinear::new(weight.view(), None).unwrap();
    let error = layer.forward(Array2::zeros((1, 6)).view()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input features: expected 5 values, found 6"
    );
}

#[test]
fn the_storage_follows_the_density() {
    let dense = Array2::from_elem((20, 20), 1.0_f32);
    let layer = SparseLinear::new(dense.view(), None).unwrap();
    assert!(
        layer.storage().to_string().starts_with("dense: 100.0%"),
        "{}",
        layer.storage()
    );
    let halves = Array2::from_shape_fn((40, 64), |(row, col)| ((row + col) % 2) as f32);
    let layer = SparseLinear::new(halves.view(), None).unwrap();
    assert!(
        layer.storage().to_string().starts_with("2:4: 50.0%"),
        "{}",
        layer.storage()
    );
    assert_eq!(layer.unpack(), halves);
    // The codes are shorter than masks, and there are no offsets.
    let by_bits = SparseLinear::sparse(PackedMatrix::from_dense(halves.view()), None).unwrap();
    assert!(layer.bytes() < by_bits.bytes());
    let half = Case::<f32>::new((20, 20), 1, 0.5, 2).weight;
    let layer = SparseLinear::new(half.view(), None).unwrap();
    assert!(
        layer.storage().to_string().starts_with("sparse: "),
        "{}",
        layer.storage()
    );
    assert_eq!(layer.unpack(), half);
}
