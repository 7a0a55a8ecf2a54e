//! Texts and bodies to measure with, made from a seed and from this repository's own sources:
//! nothing is fetched, and every run measures the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use kvscout_sim::dice::Dice;
use serde_json::{Value, json};

/// Kinds of text, since tokenizers find them differently hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Prose of this repository's documents and comments.
    English,
    /// Its Rust sources.
    Code,
    /// Clauses of common words, drawn at random: nearly every clause is new to a word cache.
    Chinese,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::English => "english",
            Self::Code => "code",
            Self::Chinese => "chinese",
        }
    }
}

/// Where texts are cut from.
pub struct Corpus {
    /// Sentences of prose.
    sentences: Vec<String>,
    /// Top-level items of source code.
    items: Vec<String>,
}

impl Corpus {
    pub fn of_this_repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let (mut prose, mut items) = (String::new(), Vec::new());
        for name in [
            "README.md",
            "ARCHITECTURE.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
        ] {
            prose += &read(&root.join(name));
        }
        let mut sources = Vec::new();
        for folder in ["src", "simulator/src", "tests"] {
            find(&root.join(folder), &mut sources);
        }
        sources.sort();
        for path in sources {
            let text = read(&path);
            for line in text.lines().map(str::trim_start) {
                if let Some(comment) = line.strip_prefix("//") {
                    prose += comment.trim_start_matches(['/', '!']);
                    prose.push('\n');
                }
            }
            items.extend(text.split("\n}\n").map(|item| format!("{item}\n}}\n")));
        }
        let sentences = prose.split_inclusive(". ").map(str::to_owned).collect();
        Self { sentences, items }
    }

    /// About so many bytes of text; another text for another seed.
    pub fn text(&self, kind: Kind, bytes: usize, seed: u64) -> String {
        let mut dice = Dice::new(seed);
        let mut text = String::with_capacity(bytes + 4096);
        while text.len() < bytes {
            match kind {
                Kind::English => text += &self.sentences[dice.below(self.sentences.len())],
                Kind::Code => text += &self.items[dice.below(self.items.len())],
                Kind::Chinese => chinese_clause(&mut dice, &mut text),
            }
        }
        let mut end = bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }

    /// A chat of so many turns and about so many bytes, whose last question is `last_bytes` long.
    pub fn conversation(
        &self,
        turns: usize,
        bytes: usize,
        last_bytes: usize,
        seed: u64,
    ) -> Vec<Value> {
        let each = (bytes - last_bytes) / (2 * turns - 1);
        let system = "You are a helpful assistant. Answer with care, and say what you do not know.";
        let mut messages = vec![json!({"role": "system", "content": system})];
        for turn in 0..turns {
            let seed = seed.wrapping_add(1000 * turn as u64);
            let last = turn + 1 == turns;
            let size = if last { last_bytes } else { each };
            messages.push(json!({"role": "user", "content": self.text(Kind::English, size, seed)}));
            if !last {
                messages.push(json!({"role": "assistant", "content": self.text(Kind::English, each, seed + 1)}));
            }
        }
        messages
    }
}

/// The body of a chat request.
pub fn chat(messages: Vec<Value>) -> Vec<u8> {
    json!({"model": "m", "stream": true, "temperature": 0.7, "messages": messages})
        .to_string()
        .into_bytes()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a file of this repository")
}

fn find(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of this repository") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

const WORDS: &str = "我们 你们 他们 今天 明天 昨天 北京 上海 天气 服务器 模型 缓存 请求 处理 分析 系统 性能 问题 \
    因为 所以 但是 如果 然后 已经 可以 需要 应该 开始 结束 学习 机器 神经 网络 数据 内存 计算 时间 空间 城市 \
    用户 程序 代码 测试 结果 方法 过程 重要 简单 复杂 快速 缓慢 第一 第二 第三 非常 比较 一些 很多 全部 部分 \
    打开 关闭 读取 写入 发送 接收 等待 返回 更新 删除 增加 减少 选择 决定 知道 认为 希望 发现 使用 提供 支持 \
    文化 历史 经济 社会 科学 技术 教育 健康 音乐 电影 旅行 食物 朋友 家庭 工作 生活 世界 国家 语言 文字 故事 \
    的 了 在 是 和 有 不 也 都 就 很 把 被 让 给 对 从 到 向 与";

fn chinese_clause(dice: &mut Dice, text: &mut String) {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    for _ in 0..3 + dice.below(6) {
        text.push_str(words[dice.below(words.len())]);
    }
    text.push_str(["，", "，", "。", "；", "：", "？", "。\n"][dice.below(7)]);
}
