package controller

import (
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// credential is this replica's own, signed anew at half of its life and when the roots change.
type credential struct {
	own       *own
	namespace string

	mu    sync.Mutex // guards what follows
	held  *identity.Credential
	under uint64 // generation of the roots that held is signed and shown under
}

func (c *credential) get() (*identity.Credential, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	under := c.own.issuers.Load().roots.Generation
	if now := time.Now(); c.held == nil || now.After(c.held.RenewAt()) || c.under != under {
		fresh, err := c.own.controllerCredential(c.namespace, now)
		if err != nil {
			return nil, err
		}
		c.held, c.under = fresh, under
	}
	return c.held, nil
}
