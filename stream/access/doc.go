// Package access says who may do what on the broker: identities of machines, the
// accounts and permissions that contain them, and certificates.
//
// Every machine has one identity ([User]): a camera, a subscriber, a worker, a
// trainer and so on ([Role]). The truth is one file, users.yaml ([File]). It
// holds public keys and password hashes only; the private half is written once,
// for the client. [Render] turns the file into a configuration that both the
// embedded broker and an outside nats-server read, so that both contain the
// same machines in the same way.
//
// Three accounts hold the machines. NM has the streams and everything that
// works on them. CAMERAS has cameras, which reach one service of NM: storing a
// frame. SUBSCRIBERS has those who listen, who see events and scores, and may
// pull from a durable consumer that an operator made for them. Accounts are
// needed because permissions on subjects contain nobody inside one account: a
// client that may publish a single subject can name any reply subject, and the
// server's answer is then stored there. Across accounts an answer goes back to
// the account of the asker and nowhere else.
package access
