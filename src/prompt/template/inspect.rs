//! What a template's syntax tree tells: how it wants contents, and whether a stranger's template
//! can be run within bounds.

use std::collections::HashSet;

use minijinja::machinery::ast::{CallArg, Expr, Stmt};
use minijinja::machinery::parse;

use super::source::is_deep;
use super::{ContentFormat, jinja};
use crate::prompt::PromptError;

/// A node of the tree.
#[derive(Clone, Copy)]
enum Node<'t, 's> {
    Stmt(&'t Stmt<'s>),
    Expr(&'t Expr<'s>),
}

/// [`ContentFormat::Openai`] if the template loops over a message's content, as vLLM finds out
/// (`renderers/hf.py`, `_detect_content_format`); a template that does not parse is "string".
pub fn content_format(source: &str) -> ContentFormat {
    let Ok(root) = parse(source, "template", jinja::syntax()) else {
        return ContentFormat::String;
    };
    let mut nodes = Vec::new();
    collect(Node::Stmt(&root), false, &mut nodes);
    match loops_over_content(&nodes) {
        Some(true) => ContentFormat::Openai,
        _ => ContentFormat::String,
    }
}

/// Refuses a request's own template that keeps what it computes. Fuel and the budget bound a
/// render's steps and bytes, but `{% set ns.x = [ns.x] %}` in a loop makes a value so deep that
/// dropping it uses up the stack, and macros recurse on it.
pub fn check_foreign(source: &str) -> Result<(), PromptError> {
    let refuse = |what| {
        let field = "chat_template".to_owned();
        Err(PromptError::Unsupported { field, what })
    };
    if is_deep(source) {
        return refuse("templates with expressions this deep");
    }
    let Ok(root) = parse(source, "template", jinja::syntax()) else {
        return Err(PromptError::Template(
            "the request's own does not compile".to_owned(),
        ));
    };
    let mut nodes = Vec::new();
    collect(Node::Stmt(&root), false, &mut nodes);
    let keeps = nodes.iter().any(|(node, _)| match node {
        Node::Stmt(Stmt::ForLoop(each)) => each.recursive,
        Node::Stmt(stmt) => !matches!(
            stmt,
            Stmt::Template(_)
                | Stmt::EmitExpr(_)
                | Stmt::EmitRaw(_)
                | Stmt::IfCond(_)
                | Stmt::WithBlock(_)
                | Stmt::Continue(_)
                | Stmt::Break(_)
        ),
        Node::Expr(_) => false,
    });
    match keeps {
        true => refuse("templates that assign or recurse"),
        false => Ok(()),
    }
}

/// Whether a loop over contents is found; none where the tree puzzles vLLM, too.
fn loops_over_content(nodes: &[(Node, bool)]) -> Option<bool> {
    let loops = || {
        nodes.iter().filter_map(|(node, in_macro)| match node {
            Node::Stmt(Stmt::ForLoop(each)) => Some((each, *in_macro)),
            _ => None,
        })
    };
    let lists = names_of_messages(nodes)?;
    let mut messages = HashSet::new();
    for (each, _) in loops() {
        if lists.iter().any(|list| accesses(&each.iter, list, None)) {
            messages.insert(variable(&each.target)?);
        }
    }
    let is_content = |expr: &Expr| {
        messages
            .iter()
            .any(|message| accesses(expr, message, Some("content")))
    };
    let parameters = content_parameters(nodes, is_content);
    for (each, in_macro) in loops() {
        let name = variable(&each.iter);
        let plain = name.is_some_and(|name| match in_macro {
            true => parameters.contains(name),
            false => name == "content",
        });
        if is_content(&each.iter) || plain {
            return variable(&each.target).map(|_| true);
        }
    }
    Some(false)
}

/// `messages`, and every variable that is set to it or to a part of it.
fn names_of_messages<'s>(nodes: &[(Node<'_, 's>, bool)]) -> Option<HashSet<&'s str>> {
    let mut names = HashSet::from(["messages"]);
    loop {
        let before = names.len();
        for (node, _) in nodes {
            if let Node::Stmt(Stmt::Set(set)) = node
                && names.iter().any(|name| accesses(&set.expr, name, None))
            {
                names.insert(variable(&set.target)?);
            }
        }
        if names.len() == before {
            return Some(names);
        }
    }
}

/// Parameters of macros that are called with a content.
fn content_parameters<'s>(
    nodes: &[(Node<'_, 's>, bool)],
    is_content: impl Fn(&Expr) -> bool,
) -> HashSet<&'s str> {
    let mut parameters = HashSet::new();
    let macros: Vec<_> = nodes
        .iter()
        .filter_map(|(node, _)| match node {
            Node::Stmt(Stmt::Macro(one)) => Some(one),
            _ => None,
        })
        .collect();
    for (node, _) in nodes {
        let Node::Expr(Expr::Call(call)) = node else {
            continue;
        };
        let called = macros
            .iter()
            .filter(|one| variable(&call.expr) == Some(one.name));
        for one in called {
            let names: Vec<_> = one.args.iter().filter_map(variable).collect();
            for (position, arg) in call.args.iter().enumerate() {
                let (name, value) = match arg {
                    CallArg::Pos(value) => (names.get(position).copied(), value),
                    CallArg::Kwarg(name, value) => {
                        (names.iter().find(|n| *n == name).copied(), value)
                    }
                    CallArg::PosSplat(_) | CallArg::KwargSplat(_) => continue,
                };
                parameters.extend(name.filter(|_| is_content(value)));
            }
        }
    }
    parameters
}

fn variable<'s>(expr: &Expr<'s>) -> Option<&'s str> {
    match expr {
        Expr::Var(var) => Some(var.id),
        _ => None,
    }
}

/// Whether `expr` is the variable, or its attribute `key`, perhaps filtered, tested or sliced.
fn accesses(expr: &Expr, name: &str, key: Option<&str>) -> bool {
    match (expr, key) {
        (Expr::Filter(filter), _) => filter.expr.as_ref().is_some_and(|e| accesses(e, name, key)),
        (Expr::Test(test), _) => accesses(&test.expr, name, key),
        (Expr::Slice(slice), _) => accesses(&slice.expr, name, key),
        (Expr::Var(var), None) => var.id == name,
        (Expr::GetAttr(get), Some(key)) => variable(&get.expr) == Some(name) && get.name == key,
        (Expr::GetItem(get), Some(key)) => {
            let constant = get.subscript_expr.as_const();
            variable(&get.expr) == Some(name) && constant.is_some_and(|c| c.as_str() == Some(key))
        }
        _ => false,
    }
}

/// Every node of a tree, each with whether it stands in a macro.
fn collect<'t, 's>(node: Node<'t, 's>, in_macro: bool, out: &mut Vec<(Node<'t, 's>, bool)>) {
    out.push((node, in_macro));
    let mut exprs: Vec<&'t Expr<'s>> = Vec::new();
    let mut stmts: Vec<&'t Stmt<'s>> = Vec::new();
    let mut inside = in_macro;
    match node {
        Node::Expr(expr) => operands(expr, &mut exprs),
        Node::Stmt(stmt) => match stmt {
            Stmt::Template(root) => stmts.extend(&root.children),
            Stmt::EmitExpr(emit) => exprs.push(&emit.expr),
            Stmt::ForLoop(each) => {
                exprs.extend([&each.target, &each.iter]);
                exprs.extend(&each.filter_expr);
                stmts.extend(each.body.iter().chain(&each.else_body));
            }
            Stmt::IfCond(cond) => {
                exprs.push(&cond.expr);
                stmts.extend(cond.true_body.iter().chain(&cond.false_body));
            }
            Stmt::WithBlock(with) => {
                exprs.extend(with.assignments.iter().flat_map(|(to, from)| [to, from]));
                stmts.extend(&with.body);
            }
            Stmt::Set(set) => exprs.extend([&set.target, &set.expr]),
            Stmt::SetBlock(set) => {
                exprs.extend(&set.filter);
                stmts.extend(&set.body);
            }
            Stmt::AutoEscape(block) => stmts.extend(&block.body),
            Stmt::FilterBlock(block) => stmts.extend(&block.body),
            Stmt::Block(block) => stmts.extend(&block.body),
            Stmt::Macro(one) => {
                inside = true;
                exprs.extend(&one.defaults);
                stmts.extend(&one.body);
            }
            Stmt::CallBlock(block) => {
                exprs.push(&block.call.expr);
                exprs.extend(block.call.args.iter().map(argument));
                stmts.extend(&block.macro_decl.body);
            }
            Stmt::Do(block) => {
                exprs.push(&block.call.expr);
                exprs.extend(block.call.args.iter().map(argument));
            }
            _ => {}
        },
    }
    for expr in exprs {
        collect(Node::Expr(expr), inside, out);
    }
    for stmt in stmts {
        collect(Node::Stmt(stmt), inside, out);
    }
}

fn operands<'t, 's>(expr: &'t Expr<'s>, out: &mut Vec<&'t Expr<'s>>) {
    match expr {
        Expr::Var(_) | Expr::Const(_) => {}
        Expr::Slice(slice) => {
            out.push(&slice.expr);
            out.extend(
                [&slice.start, &slice.stop, &slice.step]
                    .into_iter()
                    .flatten(),
            );
        }
        Expr::UnaryOp(op) => out.push(&op.expr),
        Expr::BinOp(op) => out.extend([&op.left, &op.right]),
        Expr::Compare(compare) => {
            out.push(&compare.expr);
            out.extend(compare.ops.iter().map(|op| &op.expr));
        }
        Expr::IfExpr(choice) => {
            out.extend([&choice.test_expr, &choice.true_expr]);
            out.extend(&choice.false_expr);
        }
        Expr::Filter(filter) => {
            out.extend(&filter.expr);
            out.extend(filter.args.iter().map(argument));
        }
        Expr::Test(test) => {
            out.push(&test.expr);
            out.extend(test.args.iter().map(argument));
        }
        Expr::GetAttr(get) => out.push(&get.expr),
        Expr::GetItem(get) => out.extend([&get.expr, &get.subscript_expr]),
        Expr::Call(call) => {
            out.push(&call.expr);
            out.extend(call.args.iter().map(argument));
        }
        Expr::List(list) => out.extend(&list.items),
        Expr::Tuple(tuple) => out.extend(&tuple.items),
        Expr::Map(map) => out.extend(map.keys.iter().chain(&map.values)),
    }
}

fn argument<'t, 's>(arg: &'t CallArg<'s>) -> &'t Expr<'s> {
    match arg {
        CallArg::Pos(value)
        | CallArg::Kwarg(_, value)
        | CallArg::PosSplat(value)
        | CallArg::KwargSplat(value) => value,
    }
}
