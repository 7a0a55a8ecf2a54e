//! Writes a template again, so that minijinja computes it as Python does.
//!
//! minijinja's operators cannot be replaced, and differ: `1 < 'a'` is an answer, `'%s' % x` is
//! none, `x[:0:-1]` is a wrong one, and what they copy costs no fuel. So operators become calls of
//! [`operators`](super::operators), text is written as it was, and lines stay lines for messages.
//!
//! What even so is not computed as Python does, fails, and the request goes by load:
//! `tests/fixtures/templates/refused.txt` has an example of each. In short: integers beyond 127
//! bits; arithmetic with those beyond 64 that a request brings; character questions, `title` and
//! `swapcase` beyond ASCII where they need Unicode's tables; `varargs` and `kwargs` of macros;
//! unary plus; `cycler`; HTML filters and methods of Markup; a few formats and dates. Where
//! Python raises, we may render all the same: vLLM then refuses the request wherever it goes.

use std::fmt::Write;

use minijinja::machinery::ast::{
    BinOpKind, Call, CallArg, CompareOpKind, Expr, IfCond, Macro, Stmt, UnaryOpKind,
};
use minijinja::machinery::parse;
use minijinja::value::ValueKind;

use super::jinja;
use super::methods::is_method;

/// Indices that are looked up as they are: a string finds them at once, too.
const PLAIN_INDEX_MAX: i64 = 15;

/// The template for minijinja, or the text as it was where it does not parse.
pub fn lower(source: &str) -> String {
    match parse(source, "template", jinja::syntax()) {
        Ok(Stmt::Template(root)) => {
            let mut printer = Printer {
                out: String::with_capacity(source.len() * 2),
                line: 1,
                captures: 0,
            };
            printer.stmts(&root.children);
            // The end of a template loses a line end.
            printer.out.push_str("{%+ if false +%}{%+ endif +%}");
            printer.out
        }
        _ => source.to_owned(),
    }
}

struct Printer {
    out: String,
    line: u16,
    /// Blocks around whose text is a value first. It is printed, since the printer counts.
    captures: usize,
}

impl Printer {
    fn write(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn stmts(&mut self, stmts: &[Stmt]) {
        for stmt in stmts {
            self.stmt(stmt);
        }
    }

    fn captured(&mut self, stmts: &[Stmt]) {
        self.captures += 1;
        self.stmts(stmts);
        self.captures -= 1;
    }

    /// Begins a tag in the line where the template has it.
    fn open(&mut self, tag: &str, line: u16) {
        self.write(tag);
        while self.line < line {
            self.out.push('\n');
            self.line += 1;
        }
        self.out.push(' ');
    }

    fn tag(&mut self, line: u16, inner: impl FnOnce(&mut Self)) {
        self.open("{%+", line);
        inner(self);
        self.write(" +%}");
    }

    fn end(&mut self, word: &str) {
        self.tag(0, |p| p.write(word));
    }

    fn text(&mut self, text: &str) {
        let plain = self.captures == 0
            && !["{{", "{%", "{#"].iter().any(|tag| text.contains(tag))
            && !text.ends_with('{');
        if plain {
            self.write(text);
            let lines = text.bytes().filter(|byte| *byte == b'\n').count();
            self.line = self
                .line
                .saturating_add(u16::try_from(lines).unwrap_or(u16::MAX));
        } else {
            self.write("{{ ");
            self.string(text);
            self.write(" }}");
        }
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Template(root) => self.stmts(&root.children),
            Stmt::EmitRaw(raw) => self.text(raw.raw),
            Stmt::EmitExpr(emit) => {
                self.open("{{", emit.span().start_line);
                match &emit.expr {
                    Expr::BinOp(op) if matches!(op.op, BinOpKind::Add) => {
                        self.sum("__print_sum", op.op, &op.left, &op.right);
                    }
                    other => self.expr(other),
                }
                self.write(" }}");
            }
            Stmt::ForLoop(each) => {
                self.tag(each.span().start_line, |p| {
                    p.write("for ");
                    p.target(&each.target);
                    p.write(" in ");
                    p.operand(&each.iter);
                    p.write("|__iter");
                    if let Some(filter) = &each.filter_expr {
                        p.write(" if ");
                        p.expr(filter);
                    }
                    if each.recursive {
                        p.write(" recursive");
                    }
                });
                match each.recursive {
                    true => self.captured(&each.body),
                    false => self.stmts(&each.body),
                }
                if !each.else_body.is_empty() {
                    self.end("else");
                    self.stmts(&each.else_body);
                }
                self.end("endfor");
            }
            Stmt::IfCond(cond) => {
                self.branch("if ", cond.span().start_line, cond);
                self.end("endif");
            }
            Stmt::WithBlock(with) => {
                self.tag(with.span().start_line, |p| {
                    p.write("with ");
                    for (at, (target, value)) in with.assignments.iter().enumerate() {
                        p.write(if at > 0 { ", " } else { "" });
                        p.target(target);
                        p.write(" = ");
                        p.expr(value);
                    }
                });
                self.stmts(&with.body);
                self.end("endwith");
            }
            Stmt::Set(set) => self.tag(set.span().start_line, |p| {
                p.write("set ");
                p.target(&set.target);
                p.write(" = ");
                match &set.target {
                    Expr::GetAttr(_) => {
                        p.operand(&set.expr);
                        p.write("|__keep");
                    }
                    _ => p.expr(&set.expr),
                }
            }),
            Stmt::SetBlock(set) => {
                self.tag(set.span().start_line, |p| {
                    p.write("set ");
                    p.target(&set.target);
                    if let Some(filter) = &set.filter {
                        p.write(" | ");
                        p.expr(filter);
                    }
                });
                self.captured(&set.body);
                self.end("endset");
            }
            Stmt::FilterBlock(block) => {
                self.tag(block.span().start_line, |p| {
                    p.write("filter ");
                    p.expr(&block.filter);
                });
                self.captured(&block.body);
                self.end("endfilter");
            }
            Stmt::Macro(one) => {
                self.tag(one.span().start_line, |p| {
                    p.write("macro ");
                    p.write(one.name);
                    p.parameters(one);
                });
                self.defaults(one);
                self.captured(&one.body);
                self.end("endmacro");
            }
            Stmt::CallBlock(block) => {
                self.tag(block.span().start_line, |p| {
                    p.write("call");
                    if !block.macro_decl.args.is_empty() {
                        p.parameters(&block.macro_decl);
                    }
                    p.write(" ");
                    p.call(&block.call);
                });
                self.defaults(&block.macro_decl);
                self.captured(&block.macro_decl.body);
                self.end("endcall");
            }
            Stmt::Block(block) => {
                self.tag(block.span().start_line, |p| {
                    p.write("block ");
                    p.write(block.name);
                });
                self.stmts(&block.body);
                self.end("endblock");
            }
            Stmt::Continue(word) => self.tag(word.span().start_line, |p| p.write("continue")),
            Stmt::Break(word) => self.tag(word.span().start_line, |p| p.write("break")),
            // Other templates are never there, and transformers has no `do`: as vLLM refuses
            // them, so do we.
            Stmt::Do(_)
            | Stmt::AutoEscape(_)
            | Stmt::Import(_)
            | Stmt::FromImport(_)
            | Stmt::Extends(_)
            | Stmt::Include(_) => self.write("{{ raise_exception('') }}"),
        }
    }

    /// An `if` without its end. One that is all of another's `else`, is its `elif`: both parsers
    /// count how deep blocks stand in each other.
    fn branch(&mut self, word: &str, line: u16, cond: &IfCond) {
        self.tag(line, |p| {
            p.write(word);
            p.operand(&cond.expr);
        });
        self.stmts(&cond.true_body);
        match cond.false_body.as_slice() {
            [] => {}
            [Stmt::IfCond(other)] => self.branch("elif ", other.span().start_line, other),
            others => {
                self.end("else");
                self.stmts(others);
            }
        }
    }

    fn parameters(&mut self, one: &Macro) {
        self.write("(");
        for (at, name) in one.args.iter().enumerate() {
            self.write(if at > 0 { ", " } else { "" });
            self.target(name);
        }
        self.write(")");
    }

    /// Defaults, which may name the parameters before them.
    fn defaults(&mut self, one: &Macro) {
        let plain = one.args.len().saturating_sub(one.defaults.len());
        for (name, default) in one.args[plain..].iter().zip(&one.defaults) {
            self.tag(0, |p| {
                p.write("if ");
                p.target(name);
                p.write(" is undefined");
            });
            self.tag(0, |p| {
                p.write("set ");
                p.target(name);
                p.write(" = ");
                p.expr(default);
            });
            self.end("endif");
        }
    }

    /// What is assigned to.
    fn target(&mut self, target: &Expr) {
        match target {
            Expr::List(list) => {
                self.write("(");
                for item in &list.items {
                    self.target(item);
                    self.write(", ");
                }
                self.write(")");
            }
            Expr::GetAttr(get) => {
                self.target(&get.expr);
                self.write(".");
                self.write(get.name);
            }
            Expr::Var(var) => self.write(var.id),
            other => self.expr(other),
        }
    }

    /// An expression that something is appended to.
    fn operand(&mut self, expr: &Expr) {
        match expr {
            Expr::UnaryOp(_) | Expr::IfExpr(_) | Expr::Test(_) | Expr::Const(_) => self.group(expr),
            Expr::BinOp(op) if !is_call(op.op, &op.left, &op.right) => self.group(expr),
            _ => self.expr(expr),
        }
    }

    fn group(&mut self, expr: &Expr) {
        self.write("(");
        self.expr(expr);
        self.write(")");
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Var(var) => self.write(var.id),
            Expr::Const(constant) => self.constant(&constant.value),
            Expr::Slice(slice) => {
                self.operand(&slice.expr);
                self.write("|__slice(");
                for (at, bound) in [&slice.start, &slice.stop, &slice.step].iter().enumerate() {
                    self.write(if at > 0 { ", " } else { "" });
                    match bound {
                        Some(bound) => self.expr(bound),
                        None => self.write("none"),
                    }
                }
                self.write(")");
            }
            Expr::UnaryOp(op) => match op.op {
                UnaryOpKind::Not => {
                    self.write("not ");
                    self.operand(&op.expr);
                }
                UnaryOpKind::Neg => {
                    self.operand(&op.expr);
                    self.write("|__neg");
                }
            },
            Expr::BinOp(op) => self.binary(op.op, &op.left, &op.right),
            Expr::Compare(compare) => {
                self.operand(&compare.expr);
                self.write("|__chain(");
                for op in &compare.ops {
                    self.string(comparison(op.op));
                    self.write(", ");
                    self.expr(&op.expr);
                    self.write(", ");
                }
                self.write(")");
            }
            Expr::IfExpr(choice) => {
                self.operand(&choice.true_expr);
                self.write(" if ");
                self.operand(&choice.test_expr);
                if let Some(other) = &choice.false_expr {
                    self.write(" else ");
                    match other {
                        Expr::IfExpr(_) => self.expr(other),
                        _ => self.operand(other),
                    }
                }
            }
            Expr::Filter(filter) => {
                if let Some(value) = &filter.expr {
                    self.operand(value);
                    self.write("|");
                }
                self.write(filter.name);
                self.arguments(&filter.args);
            }
            Expr::Test(test) => {
                self.operand(&test.expr);
                self.write(" is ");
                self.write(test.name);
                if !test.args.is_empty() {
                    self.arguments(&test.args);
                }
            }
            Expr::GetAttr(get) if is_method(get.name) => {
                self.operand(&get.expr);
                self.write("|__attr(");
                self.string(get.name);
                self.write(")");
            }
            Expr::GetAttr(get) => {
                self.reference(&get.expr);
                self.write(".");
                self.write(get.name);
            }
            Expr::GetItem(get) if is_plain_key(&get.subscript_expr) => {
                self.reference(&get.expr);
                self.write("[");
                self.expr(&get.subscript_expr);
                self.write("]");
            }
            Expr::GetItem(get) => {
                self.operand(&get.expr);
                self.write("|__item(");
                self.expr(&get.subscript_expr);
                self.write(")");
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => self.sequence("[", &list.items, "]"),
            Expr::Tuple(tuple) => self.sequence("(", &tuple.items, ")"),
            // Keys of other types can be the same one: `{1: 2, true: 3}`.
            Expr::Map(map) if !map.keys.iter().all(is_text) => {
                self.write("[");
                for part in map.keys.iter().zip(&map.values).flat_map(|(k, v)| [k, v]) {
                    self.expr(part);
                    self.write(", ");
                }
                self.write("]|__dict");
            }
            Expr::Map(map) => {
                self.write("{");
                for (key, value) in map.keys.iter().zip(&map.values) {
                    self.expr(key);
                    self.write(": ");
                    self.expr(value);
                    self.write(", ");
                }
                self.write("}");
            }
        }
    }

    /// An expression before `.name`, `[key]` or a call, which bind tighter than a filter.
    fn reference(&mut self, expr: &Expr) {
        match expr {
            Expr::Map(map) if !map.keys.iter().all(is_text) => self.group(expr),
            Expr::Var(_) | Expr::Call(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => {
                self.expr(expr);
            }
            Expr::GetAttr(get) if !is_method(get.name) => self.expr(expr),
            Expr::GetItem(get) if is_plain_key(&get.subscript_expr) => self.expr(expr),
            _ => self.group(expr),
        }
    }

    fn call(&mut self, call: &Call) {
        match &call.expr {
            Expr::GetAttr(method) => {
                self.reference(&method.expr);
                self.write(".");
                self.write(method.name);
            }
            other => self.reference(other),
        }
        self.arguments(&call.args);
    }

    fn sequence(&mut self, open: &str, items: &[Expr], close: &str) {
        self.write(open);
        for item in items {
            self.expr(item);
            self.write(", ");
        }
        self.write(close);
    }

    fn arguments(&mut self, args: &[CallArg]) {
        self.write("(");
        for arg in args {
            match arg {
                CallArg::Pos(value) => self.expr(value),
                CallArg::Kwarg(name, value) => {
                    self.write(name);
                    self.write("=");
                    self.expr(value);
                }
                CallArg::PosSplat(value) => {
                    self.write("*");
                    self.expr(value);
                }
                CallArg::KwargSplat(value) => {
                    self.write("**");
                    self.expr(value);
                }
            }
            self.write(", ");
        }
        self.write(")");
    }

    fn binary(&mut self, op: BinOpKind, left: &Expr, right: &Expr) {
        if !is_call(op, left, right) {
            let word = match op {
                BinOpKind::ScAnd => " and ",
                BinOpKind::ScOr => " or ",
                BinOpKind::Eq => " == ",
                _ => " != ",
            };
            self.side(op, left);
            self.write(word);
            return self.operand(right);
        }
        self.sum(operator(op), op, left, right);
    }

    /// a + b + c is one call: what is copied, is copied once, and what is printed, not at all.
    fn sum(&mut self, name: &str, op: BinOpKind, left: &Expr, right: &Expr) {
        let mut operands = vec![right];
        let mut first = left;
        if matches!(op, BinOpKind::Add | BinOpKind::Concat) {
            while let Expr::BinOp(inner) = first
                && std::mem::discriminant(&inner.op) == std::mem::discriminant(&op)
            {
                operands.push(&inner.right);
                first = &inner.left;
            }
        }
        self.operand(first);
        self.write("|");
        self.write(name);
        self.write("(");
        for operand in operands.into_iter().rev() {
            self.expr(operand);
            self.write(", ");
        }
        self.write(")");
    }

    /// The left side of `and` and `or`, which need no parentheses in a row.
    fn side(&mut self, op: BinOpKind, left: &Expr) {
        match left {
            Expr::BinOp(inner)
                if matches!(op, BinOpKind::ScAnd | BinOpKind::ScOr)
                    && std::mem::discriminant(&inner.op) == std::mem::discriminant(&op) =>
            {
                self.expr(left);
            }
            _ => self.operand(left),
        }
    }

    fn constant(&mut self, value: &minijinja::Value) {
        match (value.kind(), value.as_str()) {
            (_, Some(text)) => self.string(text),
            (ValueKind::None, _) => self.write("none"),
            (ValueKind::Bool, _) => self.write(if value.is_true() { "true" } else { "false" }),
            _ if value.is_integer() => self.write(&value.to_string()),
            _ => {
                let number = f64::try_from(value.clone()).unwrap_or(f64::INFINITY);
                match number.is_finite() {
                    true => write!(self.out, "{number:e}").expect("a String takes everything"),
                    false => self.write("1e999"),
                }
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.write("\\\""),
                '\\' => self.write("\\\\"),
                '\n' => self.write("\\n"),
                '\r' => self.write("\\r"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Whether an operator is written as a call. Not where minijinja does as Python does at a
/// constant cost.
fn is_call(op: BinOpKind, left: &Expr, right: &Expr) -> bool {
    match op {
        BinOpKind::ScAnd | BinOpKind::ScOr => false,
        BinOpKind::Eq | BinOpKind::Ne => !is_small(left) && !is_small(right),
        _ => true,
    }
}

fn is_text(expr: &Expr) -> bool {
    matches!(expr, Expr::Const(constant) if constant.value.as_str().is_some())
}

fn is_small(expr: &Expr) -> bool {
    match expr {
        Expr::Const(constant) => {
            let value = &constant.value;
            match value.kind() {
                ValueKind::Number => value.as_i64().is_some() && value.is_integer(),
                _ => true,
            }
        }
        _ => false,
    }
}

/// Whether minijinja looks this key up as Python does, at once.
fn is_plain_key(key: &Expr) -> bool {
    let Expr::Const(constant) = key else {
        return false;
    };
    match constant.value.as_str() {
        Some(name) => !is_method(name),
        None => {
            constant.value.is_integer()
                && constant
                    .value
                    .as_i64()
                    .is_some_and(|index| index <= PLAIN_INDEX_MAX)
        }
    }
}

fn operator(op: BinOpKind) -> &'static str {
    match op {
        BinOpKind::Add => "__add",
        BinOpKind::Concat => "__concat",
        BinOpKind::Sub => "__sub",
        BinOpKind::Mul => "__mul",
        BinOpKind::Div => "__div",
        BinOpKind::FloorDiv => "__floordiv",
        BinOpKind::Rem => "__mod",
        BinOpKind::Pow => "__pow",
        BinOpKind::Eq => "__eq",
        BinOpKind::Ne => "__ne",
        BinOpKind::Lt => "__lt",
        BinOpKind::Lte => "__le",
        BinOpKind::Gt => "__gt",
        BinOpKind::Gte => "__ge",
        BinOpKind::In => "__in",
        BinOpKind::ScAnd | BinOpKind::ScOr => "__never",
    }
}

fn comparison(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => "==",
        CompareOpKind::Ne => "!=",
        CompareOpKind::Lt => "<",
        CompareOpKind::Lte => "<=",
        CompareOpKind::Gt => ">",
        CompareOpKind::Gte => ">=",
        CompareOpKind::In => "in",
        CompareOpKind::NotIn => "not in",
    }
}
