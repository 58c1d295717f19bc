//! Who is speaking on the control socket, and whether it may.

use std::ffi::CString;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::names::{AGENT_GROUP, OPERATOR_GROUP, UidBlock};

/// The user database may hang (a directory service that is down); a peer is then refused.
const LOOKUP_TIME: Duration = Duration::from_secs(5);

/// A peer that may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user id, from the kernel.
    pub uid: u32,
    /// Its user name, from the user database.
    pub name: String,
}

/// Why a peer may not ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Agents have no control over flock, whatever groups somebody put them in.
    #[error("refused: uid {0} belongs to an agent")]
    Agent(u32),
    /// Not an operator.
    #[error(
        "refused: {0} is not in the group {OPERATOR_GROUP}: run it with sudo, or \
         `sudo usermod -aG {OPERATOR_GROUP} {0}` and log in again"
    )]
    NotOperator(String),
    /// The user database does not know the user, or does not answer.
    #[error("refused: who uid {0} is cannot be looked up: {1}")]
    Unknown(u32, String),
}

/// What the user database says of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// All its groups.
    pub groups: Vec<u32>,
}

/// The groups that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The group of the operators.
    pub operators: Option<u32>,
    /// The group that every agent's user is in.
    pub agents: Option<u32>,
}

/// Decides by what the kernel and the user database say. Pure.
///
/// # Errors
/// Why the peer may not ask.
pub fn judge(
    uid: u32,
    block: UidBlock,
    account: Option<&Account>,
    groups: Groups,
) -> Result<Peer, Refusal> {
    if uid == 0 {
        return Ok(Peer { uid, name: "root".to_owned() });
    }
    if block.contains(uid) {
        return Err(Refusal::Agent(uid));
    }
    let Some(account) = account else {
        return Err(Refusal::Unknown(uid, "no such user".to_owned()));
    };
    let is_in = |group: Option<u32>| group.is_some_and(|gid| account.groups.contains(&gid));
    if is_in(groups.agents) {
        return Err(Refusal::Agent(uid));
    }
    if !is_in(groups.operators) {
        return Err(Refusal::NotOperator(account.name.clone()));
    }
    Ok(Peer { uid, name: account.name.clone() })
}

/// Looks the user up and decides.
///
/// # Errors
/// Why the peer may not ask.
pub async fn check(uid: u32, block: UidBlock) -> Result<Peer, Refusal> {
    let unknown = |cause: String| Refusal::Unknown(uid, cause);
    let lookup = tokio::task::spawn_blocking(move || look_up(uid));
    let (account, groups) = match tokio::time::timeout(LOOKUP_TIME, lookup).await {
        Ok(Ok(Ok(found))) => found,
        Ok(Ok(Err(cause))) => return Err(unknown(cause.to_string())),
        Ok(Err(cause)) => return Err(unknown(cause.to_string())),
        Err(_) => return Err(unknown("the user database does not answer".to_owned())),
    };
    judge(uid, block, account.as_ref(), groups)
}

fn look_up(uid: u32) -> nix::Result<(Option<Account>, Groups)> {
    let group = |name| Ok::<_, nix::Error>(Group::from_name(name)?.map(|group| group.gid.as_raw()));
    let groups = Groups { operators: group(OPERATOR_GROUP)?, agents: group(AGENT_GROUP)? };
    let account = match User::from_uid(Uid::from_raw(uid))? {
        Some(user) => Some(account(user)?),
        None => None,
    };
    Ok((account, groups))
}

fn account(user: User) -> nix::Result<Account> {
    let name = CString::new(user.name.as_str()).map_err(|_| nix::Error::EINVAL)?;
    let groups = getgrouplist(&name, user.gid)?.into_iter().map(Gid::as_raw).collect();
    Ok(Account { name: user.name, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: Groups = Groups { operators: Some(900), agents: Some(901) };

    fn decide(uid: u32, groups: &[u32]) -> Result<Peer, Refusal> {
        let account = Account { name: "ann".into(), groups: groups.to_vec() };
        judge(uid, UidBlock::DEFAULT, Some(&account), GROUPS)
    }

    #[test]
    fn root_and_operators_may_ask_and_nobody_else() {
        assert_eq!(decide(0, &[]).unwrap().name, "root");
        assert_eq!(decide(1000, &[1000, 900]).unwrap().name, "ann");
        assert_eq!(decide(1000, &[1000]), Err(Refusal::NotOperator("ann".into())));
        assert!(matches!(
            judge(1000, UidBlock::DEFAULT, None, GROUPS),
            Err(Refusal::Unknown(1000, _))
        ));
        let no_group = Groups { operators: None, agents: None };
        let account = Account { name: "ann".into(), groups: vec![0, 900] };
        assert!(judge(1000, UidBlock::DEFAULT, Some(&account), no_group).is_err());
    }

    #[test]
    fn an_agent_is_refused_whatever_its_groups() {
        for uid in [UidBlock::DEFAULT.first, UidBlock::DEFAULT.last, 70_000] {
            assert_eq!(decide(uid, &[900]), Err(Refusal::Agent(uid)));
        }
        // A user id outside the block: an older configuration had another one.
        assert_eq!(decide(2000, &[900, 901]), Err(Refusal::Agent(2000)));
    }

    #[tokio::test]
    async fn the_kernels_word_is_looked_up() {
        assert_eq!(check(0, UidBlock::DEFAULT).await.unwrap().uid, 0);
        let nobody = check(65_534, UidBlock { first: 70_000, last: 70_001 }).await;
        assert!(nobody.is_err());
    }
}
