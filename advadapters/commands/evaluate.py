"""usage: advadapters evaluate --workdir=DIR [--mixture=... --suite=... --examples=N]

Clean and robust accuracy of mixtures of a trained network's adapters, each attacked
through itself, on the test images.

  --mixture=clean=0.9,linf=0.1   weights by domain that sum to 1, or fractions like 1/3;
                                 several separated by ";"
                                 (default: the soups that the config lists)
  --grid=0.2                     all soups with weights in such steps instead
  --extrapolation=0.2            how far below 0 the grid's weights may go
  --ensemble=clean=0.5,linf=0.5  these as well: their probabilities mixed, not their
                                 weights, at a forward pass for each domain
  --statistics=1000              batch statistics of each soup estimated anew on so many
                                 training images (default: the mixed ones)
  --lambda=0,0.3 --width=0.5     of a network conditioned on lambda (default: those that
                                 it was trained with)
  --suite=pgd20_linf             suites of the config, separated by "," (default: all),
                                 or autoattack, autoattack-plus, autoattack-fast (at a
                                 fifth of the cost), autoattack-fast+standard (and the
                                 rest for what that leaves), or AutoAttack's parts that
                                 are named: autoattack:apgd-ce,square
  --suite=corruptions            the 15 common corruptions instead, made on the fly, or
                                 corruptions:fog,snow,speckle_noise for some
  --severity=1,3,5               of the corruptions (default: 1 to 5)
  --data=imagenet_a,folder:DIR   other test sets instead, by these names (imagenet
                                 imagenet_real imagenet_v2 imagenet_a imagenet_r
                                 imagenet_sketch conflict_stimuli), TFDS names like
                                 cifar10_corrupted/fog_3, or sources as in config.data:
                                 folder:DIR, tar:DIR, npz:FILE, idx:DIR; classes are
                                 found by their names, some may be missing
  --data_dir=DIR                 where TFDS has them (default: its own)
  --combine=mean                 probabilities of the ImageNet classes that make one of
                                 conflict_stimuli's sixteen: mean, max or sum
  --norm=linf --eps=8/255        AutoAttack's threat model (linf, if no norm is given), or
                                 several and their union: --norm=linf,l2 --eps=8/255,0.5
  --steps=100 --restarts=1       of AutoAttack's parts that take them, as are
  --targets=9 --queries=5000     these (default: those of the version)
  --seed=0                       of AutoAttack's random draws (default: the run's)
  --save_images=FILE.npz         AutoAttack's images of one network, float32, or rounded to
  --bits=8                       8 bits so that they stay in the ball
  --images=FILE.npz              counts the images of such a file on the networks instead
  --examples=1000                only so many test images, a fixed random draw
  --names=FILE                   only the test images whose files are named there, a line
                                 each, such as RobustBench's five thousand of ImageNet
  --signs=64                     compares the signs of gradients in training's precision
                                 with evaluation's on so many test images (64 where
                                 the two precisions differ, else none)
  --step=4000                    a checkpoint's step, "best" or "latest" (default)
  --config.KEY=VALUE             of keys that may still change, see `train`
  --adapters=FILE                an adapters.npz of another run with the same frozen
                                 backbone, instead of this run's own adapters
  --name=evaluation              of the files that are written

Prints a table; writes the rows to DIR/NAME.json and what each network says of each image
to DIR/NAME.npz, for `select` and `report`. Under several attacks, "union" is
the robustness to all of them. AutoAttack records every batch under DIR/autoattack, and goes
on from there when it is started again; of its images only who is right is kept.
"""

from advadapters.commands import measuring


def main(argv):
    """Returns the exit code."""
    measuring.run(argv)
    return 0
