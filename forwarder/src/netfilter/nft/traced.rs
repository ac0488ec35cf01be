//! What rules decide about a packet that is traced, and which rules these are.
//!
//! Rules are evaluated one by one, also those that are otherwise searched by a classifier, with the operations
//! that are evaluated without a trace.

use std::ops::Range;

use super::eval::Run;
use super::follow::Nft;
use super::learn::Observer;
use super::op::{Flow, Load, Op};
use super::program::{Program, Step};
use super::ruleset::{Chain, CmpOp, Expr, Rule, Table};
use crate::trace::step::RuleResult;
use crate::trace::{self, Tracer, Value};

impl<T: Observer> Run<'_, T> {
    /// The operations of the rule at a step, with what it decides recorded.
    pub(super) fn traced_rule(&mut self, number: u32, (start, end): (u32, u32)) -> Flow {
        let program = self.program;
        let mut decided = (end, Flow::Continue);
        for at in start..end {
            let Some(op) = program.ops.get(at as usize) else { break };
            let flow = match op {
                Op::Test(test) if self.test(test) => Flow::Continue,
                Op::Test(_) => Flow::Break,
                op => self.op(op),
            };
            if let Flow::Write(_) = flow {
                return Flow::Write(at + 1);
            }
            if flow != Flow::Continue {
                decided = (at, flow);
                break;
            }
        }
        let (op, flow) = decided;
        let result = match flow {
            Flow::Continue => RuleResult::Passed,
            Flow::Break => RuleResult::NoMatch(self.compared(op)),
            Flow::Accept => RuleResult::Accept,
            Flow::Drop => RuleResult::Drop,
            Flow::Return => RuleResult::Return,
            Flow::Jump(chain) => RuleResult::Jump(chain),
            Flow::Goto(chain) => RuleResult::Goto(chain),
            Flow::Kernel(_) | Flow::Write(_) => RuleResult::Kernel,
        };
        self.tracer.step(trace::Step::Rule { step: number, op, result });
        flow
    }

    /// The value that an operation has compared; empty if the packet has none.
    fn compared(&self, op: u32) -> Value {
        let loaded = |load: Load| match self.load(load) {
            Some(value) => Value::new(value.to_le_bytes().get(..load.len()).unwrap_or(&[])),
            None => Value::new(&[]),
        };
        match self.program.ops.get(op as usize) {
            Some(Op::Test(test)) => loaded(test.load),
            Some(Op::RangeTest(test)) => loaded(test.load),
            Some(Op::Cmp { sreg, len, .. } | Op::Range { sreg, len, .. }) => {
                Value::new(self.regs.get(*sreg, (*len).into()))
            }
            Some(Op::Lookup { set, sreg, .. }) => {
                let len = self.program.sets.get(*set as usize).map_or(0, |set| set.key_len());
                Value::new(self.regs.get(*sreg, len))
            }
            _ => Value::new(&[]),
        }
    }

    /// The end of a chain.
    #[inline]
    pub(super) fn chain_end(&mut self) -> Flow {
        if self.tracer.is_traced() {
            self.tracer.step(trace::Step::ChainEnd);
        }
        Flow::Return
    }
}

/// The policy decides, unless a rule has.
#[inline]
pub(super) fn trace_policy<T: Tracer>(decided: Flow, is_drop: bool, tracer: &mut T) {
    if tracer.is_traced() && !matches!(decided, Flow::Accept | Flow::Drop | Flow::Kernel(_)) {
        tracer.step(trace::Step::Policy { is_drop });
    }
}

/// A rule does not continue after a write, the operation before `next`.
pub(super) fn trace_write<T: Tracer>(step: u32, next: u32, decided: Flow, tracer: &mut T) {
    let result = match decided {
        Flow::Break => RuleResult::NoMatch(Value::new(&[])),
        Flow::Kernel(_) => RuleResult::Kernel,
        _ => return,
    };
    if tracer.is_traced() {
        tracer.step(trace::Step::Rule { step, op: next.saturating_sub(1), result });
    }
}

/// A rule in its ruleset.
#[derive(Debug, Clone)]
pub struct TracedRule<'a> {
    /// Its table.
    pub table: &'a Table,
    /// Its chain.
    pub chain: &'a Chain,
    /// The rule.
    pub rule: &'a Rule,
    /// Positions in the rule of the expressions that an operation evaluates: the load, the comparison, and
    /// what is between them, if they are evaluated together. `None`: not known.
    pub exprs: Option<Range<usize>>,
}

impl Nft {
    /// The rule that a trace has the number of, and the expressions of its operation `op`.
    pub fn traced_rule(&self, step: u32, op: u32) -> Option<TracedRule<'_>> {
        let program = self.program();
        let is_of =
            |chain: &super::program::CompiledChain| (chain.start..chain.end).contains(&step);
        let number = program.chains.iter().position(is_of)?;
        let (table, chain) = self.chain(number as u32)?;
        let rule = chain.rules.get((step - program.chains.get(number)?.start) as usize)?;
        let exprs = exprs_of(program, step, op, &rule.exprs);
        Some(TracedRule { table, chain, rule, exprs })
    }

    /// The chain that a trace has the number of.
    pub fn chain(&self, number: u32) -> Option<(&Table, &Chain)> {
        let tables = self.ruleset().tables.iter().filter(|table| table.family.is_compiled());
        let mut chains =
            tables.flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
        chains.nth(number as usize)
    }

    /// The base chain that a trace has the number of.
    pub fn traced_base(&self, base: u32) -> Option<(&Table, &Chain)> {
        self.chain(self.program().bases.get(base as usize)?.chain)
    }
}

/// The expressions of an operation of a rule: each expression has become one operation, and [`super::fuse`] has
/// joined some.
pub(super) fn exprs_of(
    program: &Program,
    step: u32,
    op: u32,
    exprs: &[Expr],
) -> Option<Range<usize>> {
    let Step { start, end, .. } = *program.steps.get(step as usize)?;
    let ops = program.ops.get(start as usize..end as usize)?;
    let wanted = op.checked_sub(start)? as usize;
    let is_limit = |expr: Option<&Expr>| {
        matches!(expr, Some(Expr::Cmp { op, .. }) if !matches!(op, CmpOp::Eq | CmpOp::Neq))
            || matches!(expr, Some(Expr::Range { .. }))
    };
    let mut first = 0;
    for (at, op) in ops.iter().enumerate().take(wanted + 1) {
        let count = match op {
            Op::Test(_) if matches!(exprs.get(first + 1), Some(Expr::Bitwise { .. })) => 3,
            Op::Test(_) => 2,
            // One that was not joined is an operation of its own.
            Op::RangeTest(_) => match ops.get(at + 1) {
                Some(Op::Cmp { .. } | Op::Range { .. }) => 2,
                _ if is_limit(exprs.get(first + 2)) => 3,
                _ => 2,
            },
            _ => 1,
        };
        if at == wanted {
            return (first + count <= exprs.len()).then_some(first..first + count);
        }
        first += count;
    }
    None
}
