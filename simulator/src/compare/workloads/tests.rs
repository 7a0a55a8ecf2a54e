use super::*;
use crate::compare::clock::SECOND;

#[test]
fn users_ask_on_time_and_their_history_grows() {
    let rounds = Rounds {
        users: 8,
        rounds: 15,
        system_tokens: 100,
        history_tokens: 2000,
        answer_tokens: 100,
        rate: 0.1,
        seconds: 600.0,
    };
    let plan = rounds.plan();
    // Ten a hundred seconds, less the first user's, who starts finished, and one more at once.
    assert!(
        (55..=66).contains(&plan.requests.len()),
        "{}",
        plan.requests.len()
    );
    let second = plan
        .requests
        .iter()
        .find(|asked| !asked.after.is_empty())
        .expect("a follower");
    let first = &plan.requests[second.after[0].request];
    assert_eq!(second.prompt[..first.prompt.len()], first.prompt);
    assert_eq!(second.prompt[first.prompt.len()], first.answer);
    assert_eq!(second.at - first.at, 80 * SECOND);
}

#[test]
fn arrivals_are_as_many_as_the_rate_says() {
    let arrivals = poisson(&mut Dice::new(1), 10.0, 1000.0);
    assert!((9_700..10_300).contains(&arrivals.len()));
    assert!(arrivals.is_sorted());
}

#[test]
fn an_ideal_cache_computes_each_block_once() {
    let groups = Groups {
        groups: 1,
        users: 1,
        prefix_tokens: 160,
        question_tokens: 41,
        answer_tokens: 10,
        rate: 10.0,
        seconds: 10.0,
        seed: 0,
    };
    let plan = groups.plan();
    let asked = plan.requests.len() as f64;
    let expected = (asked - 1.0) * 192.0 / (asked * 201.0);
    assert!((ideal_hit_rate(&plan, 16) - expected).abs() < 1e-9);
}

#[test]
fn a_tree_branches_and_its_subtasks_begin_with_all_before() {
    let agents = Agents {
        system_tokens: 100,
        task_tokens: 50,
        steps: 2,
        tool_tokens: 30,
        branches: 3,
        levels: 1,
        answer_tokens: 20,
        tool_seconds: 1.0,
        rate: 8.0,
        seconds: 10.0,
        seed: 3,
    };
    assert_eq!(agents.requests_of_a_tree(), 8);
    let plan = agents.plan();
    let followers = plan.followers();
    assert_eq!((followers[0].len(), followers[1].len()), (1, 3));
    let subtask = &plan.requests[followers[1][2]];
    assert_eq!(subtask.prompt[..4], plan.requests[1].prompt);
}
