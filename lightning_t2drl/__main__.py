"""`python -m lightning_t2drl` is the console command `t2drl`."""

from lightning_t2drl.run.cli import main

if __name__ == "__main__":
    main()
