//! Where the ways of a branch meet again: its immediate post-dominator.
//!
//! Every way from a branch to the end of the kernel passes its immediate post-dominator, and it is the
//! first such place, so lanes that part at the branch can be run one way after the other up to there
//! and together from there on. Predicated exits count as falling through: lanes that leave are gone, the
//! others go on, and meet where they would have met without the exit. Only where there is no other way to the end, as out of
//! a loop that is left by predicated exits alone, do they count as ways out.
//!
//! The algorithm is that of Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001), on
//! the reversed graph of instructions.

use crate::instruction::{Instruction, Op};

/// Fills in `join` of all branches. The end of the kernel is one past the last instruction.
pub(super) fn join_branches(code: &mut [Instruction]) {
    let end = code.len();
    let dominators = post_dominators(code);
    for at in 0..end {
        if let Op::Branch { join, .. } = &mut code[at].op {
            *join = dominators[at].unwrap_or(end) as u32;
        }
    }
}

fn successors(code: &[Instruction], reaches_end: &[bool], at: usize) -> [Option<usize>; 2] {
    let instruction = &code[at];
    let next = Some(at + 1);
    match &instruction.op {
        Op::Exit | Op::Trap if !reaches_end[at] => [Some(code.len()), next],
        Op::Branch { target, .. } => {
            let falls_through = instruction.guard.is_some();
            [Some(*target as usize), next.filter(|_| falls_through)]
        }
        Op::Exit | Op::Trap if instruction.guard.is_none() => [Some(code.len()), None],
        _ => [next, None],
    }
}

fn predecessors(code: &[Instruction], reaches_end: &[bool]) -> Vec<Vec<usize>> {
    let end = code.len();
    let mut predecessors = vec![Vec::new(); end + 1];
    for at in 0..end {
        for next in successors(code, reaches_end, at).into_iter().flatten() {
            predecessors[next.min(end)].push(at);
        }
    }
    predecessors
}

/// From where a way leads to the end, predicated exits left out.
fn reaching_end(code: &[Instruction]) -> Vec<bool> {
    let end = code.len();
    let mut reaches = vec![true; end + 1];
    let predecessors = predecessors(code, &reaches);
    reaches.fill(false);
    let mut stack = vec![end];
    while let Some(at) = stack.pop() {
        if !std::mem::replace(&mut reaches[at], true) {
            stack.extend(&predecessors[at]);
        }
    }
    reaches
}

/// Immediate post-dominators; none for code from which no way leads to the end.
fn post_dominators(code: &[Instruction]) -> Vec<Option<usize>> {
    let end = code.len();
    let reaches_end = reaching_end(code);
    let predecessors = predecessors(code, &reaches_end);
    // Postorder of the reversed graph from the end.
    let mut number = vec![usize::MAX; end + 1];
    let mut order = Vec::with_capacity(end + 1);
    let mut seen = vec![false; end + 1];
    let mut stack = vec![(end, 0)];
    seen[end] = true;
    while let Some((node, child)) = stack.last_mut() {
        if let Some(next) = predecessors[*node].get(*child).copied() {
            *child += 1;
            if !seen[next] {
                seen[next] = true;
                stack.push((next, 0));
            }
        } else {
            number[*node] = order.len();
            order.push(*node);
            stack.pop();
        }
    }
    let mut dominator = vec![None; end + 1];
    dominator[end] = Some(end);
    let mut changed = true;
    while changed {
        changed = false;
        for at in order.iter().rev().copied().filter(|at| *at != end) {
            let mut meet = None;
            for next in successors(code, &reaches_end, at).into_iter().flatten() {
                let next = next.min(end);
                if dominator[next].is_none() {
                    continue;
                }
                meet = Some(match meet {
                    None => next,
                    Some(other) => intersect(&dominator, &number, next, other),
                });
            }
            if dominator[at] != meet {
                dominator[at] = meet;
                changed = true;
            }
        }
    }
    dominator
}

/// The nearest place that dominates both.
fn intersect(dominator: &[Option<usize>], number: &[usize], a: usize, b: usize) -> usize {
    let (mut a, mut b) = (a, b);
    while a != b {
        while number[a] < number[b] {
            a = dominator[a].unwrap_or(a);
        }
        while number[b] < number[a] {
            b = dominator[b].unwrap_or(b);
        }
    }
    a
}
