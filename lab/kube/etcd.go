package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcdCommand runs a single-member etcd without fsync: a throw-away cluster has nothing to keep over a power cut.
func etcdCommand() *cobra.Command {
	var dir, client, peer string
	c := &cobra.Command{
		Use:          "etcd",
		Short:        "Run a single-member etcd without fsync",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			return runEtcd(dir, client, peer)
		},
	}
	c.Flags().StringVar(&dir, "data-dir", "", "folder of the data")
	c.Flags().StringVar(&client, "client-url", "http://127.0.0.1:2379", "where clients are served")
	c.Flags().StringVar(&peer, "peer-url", "http://127.0.0.1:2380", "where peers would be served")
	return c
}

func runEtcd(dir, client, peer string) error {
	cfg := embed.NewConfig()
	cfg.Name = "lab"
	cfg.Dir = dir
	cfg.UnsafeNoFsync = true
	cfg.LogLevel = "warn"
	cfg.AutoCompactionMode = "periodic"
	cfg.AutoCompactionRetention = "5m"
	cfg.QuotaBackendBytes = 1 << 30
	cu, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("parse --client-url: %w", err)
	}
	pu, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("parse --peer-url: %w", err)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*cu}, []url.URL{*cu}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*pu}, []url.URL{*pu}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)

	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer e.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	select {
	case <-ctx.Done():
		return nil
	case <-e.Server.StopNotify():
		return errors.New("etcd stopped by itself")
	case err := <-e.Err():
		return fmt.Errorf("etcd: %w", err)
	}
}
