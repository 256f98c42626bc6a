"""Every field that a configuration can set, with its meaning and unit.

`None` stands for the default of the thing chosen by name: `config.sde.name = "vp"` takes its
`beta_min` from `sde_lib.VPSDE`. A field of something that was not chosen is not used; giving it on
the command line is an error. Any field can be given there: `--config.optim.lr=1e-4`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 42  # of initialization, training noise and data order

    config.sde = sde = ConfigDict()
    sde.name = "vp"  # vp, subvp, cosine, linear, ve, edm; chains ddpm, smld
    sde.beta_min = placeholder(float)  # vp, subvp: beta(0)
    sde.beta_max = placeholder(float)  # vp, subvp: beta(1)
    sde.sigma_min = placeholder(float)  # ve, smld: noise of the data
    sde.sigma_max = placeholder(float)  # ve, smld, edm: noise of the prior
    sde.offset = placeholder(float)  # cosine: keeps the first noise from vanishing
    sde.alpha_min = placeholder(float)  # cosine, linear: signal left at t = 1
    sde.schedule = placeholder(str)  # ddpm: linear, cosine
    sde.levels = placeholder(int)  # ddpm, smld: length of the chain

    config.model = model = ConfigDict()
    model.name = "ncsnpp"  # a network of models.NETWORKS; its fields are documented there
    model.features = placeholder(int)
    model.channel_multipliers = placeholder(tuple)
    model.blocks_per_level = placeholder(int)
    model.attention_resolutions = placeholder(tuple)
    model.decoder_attention = placeholder(str)
    model.dropout = placeholder(float)
    model.residual_block = placeholder(str)
    model.resample = placeholder(str)
    model.fir_kernel = placeholder(tuple)
    model.progressive_input = placeholder(str)
    model.progressive_output = placeholder(str)
    model.progressive_combine = placeholder(str)
    model.embedding = placeholder(str)
    model.fourier_scale = placeholder(float)
    model.num_classes = placeholder(int)
    model.activation = placeholder(str)
    model.skip_rescale = placeholder(bool)
    model.init_scale = placeholder(float)
    model.scale_shift = placeholder(bool)
    model.heads = placeholder(int)
    model.head_width = placeholder(int)
    model.learned_variance = placeholder(bool)
    model.patch_size = placeholder(int)
    model.depth = placeholder(int)
    model.mlp_ratio = placeholder(float)
    model.levels = placeholder(int)
    model.size = placeholder(int)
    model.implementation = placeholder(str)
    model.compute_dtype = placeholder(str)
    model.remat = placeholder(bool)

    config.denoiser = denoiser = ConfigDict()
    # What the network's output means: eps, eps_variance, score, x0, v, velocity, sigma_score,
    # centred_score, edm; see denoising.py.
    denoiser.parameterization = "eps"
    # What the network is fed as time: 999t, t, log_sigma, log_snr, edm, index, rescaled_index,
    # sigma_index.
    denoiser.conditioning = "999t"
    denoiser.levels = 1000  # noise levels that an index counts

    config.loss = loss = ConfigDict()
    loss.weight = "sigma2"  # lambda(t): sigma2, or g2 (likelihood weighting)
    loss.times = "uniform"  # how times are drawn: uniform, stratified, levels (discrete)
    loss.levels = placeholder(int)  # times=levels: their number
    loss.reduction = "mean"  # over dimensions: mean, or half_sum
    loss.t_min = 1e-5  # smallest time trained on

    config.optim = optim = ConfigDict()
    optim.lr = 2e-4
    optim.warmup = 5000  # steps
    optim.decay = "constant"  # constant, cosine
    optim.grad_clip = 1.0  # global norm; 0 for none
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.eps = 1e-8

    config.ema = ema = ConfigDict()
    ema.rate = 0.9999  # a step
    ema.warmup = True  # min(rate, (1 + n) / (10 + n))

    config.data = data = ConfigDict()
    data.name = (
        "digits"  # digits, a tensorflow-datasets name, or the path of an .npz or image folder
    )
    data.dir = ""  # tensorflow-datasets directory; empty for its default, ~/tensorflow_datasets
    data.image_size = 8  # pixels
    data.channels = 1
    data.resize = "none"  # none, pad (with zeros), crop (centre, then resize)
    data.centered = True  # the network sees [-1, 1]; otherwise [0, 1]
    data.random_flip = False
    data.dequantize = True  # add uniform noise of one grey level in training

    config.training = training = ConfigDict()
    training.batch_size = 128  # images, over all devices
    training.steps = 1000
    training.label_dropout = 0.1  # probability that a class-conditional network is told no class
    training.log_every = 50  # steps
    training.checkpoint_every = 1000  # steps
    training.keep_checkpoints = 3  # the latest; 0 for all
    training.sample_every = 1000  # steps; 0 for never
    training.sample_count = 64  # images in the grid

    config.sampling = sampling = ConfigDict()
    # Fixed steps: pc (Predictor-Corrector), ddim, dpm_solver, unipc, deis, heun, analytic,
    # langevin. Adaptive: ode (probability flow), sde (reverse SDE), dpm_adaptive.
    sampling.name = "pc"
    sampling.seed = 0
    sampling.label = -1  # class of the samples: -1 all in turn, or one; num_classes for none
    sampling.clip = placeholder(str)  # of the predicted x0: none, range, dynamic
    sampling.quantile = placeholder(float)  # dynamic clipping
    sampling.t_min = 1e-3  # where sampling stops
    sampling.finish = placeholder(str)  # denoise (one more evaluation), sample; fixed steps: mean
    # Fixed steps:
    sampling.steps = placeholder(int)
    # uniform, quadratic, log_snr, karras; of a chain levels, or some: ddim50, or 10,15,20
    sampling.grid = placeholder(str)
    sampling.rho = placeholder(float)  # karras
    sampling.times = placeholder(tuple)  # from 1 down, instead of a grid
    # pc:
    # euler_maruyama, reverse_diffusion, probability_flow, ancestral, none
    sampling.predictor = "euler_maruyama"
    sampling.corrector = "none"  # langevin, annealed_langevin, none
    sampling.corrector_first = placeholder(bool)
    sampling.churn = placeholder(float)  # euler_maruyama, sde: 1 reverse SDE, 0 flow
    sampling.variance = placeholder(str)  # ancestral: small, large, learned
    sampling.snr = placeholder(float)  # correctors: signal-to-noise ratio
    sampling.corrections = placeholder(int)  # correctors: Langevin steps at each time
    sampling.norms = placeholder(str)  # langevin: per_sample, batch
    # ddim:
    sampling.eta = placeholder(float)  # 0 deterministic to 1 ancestral
    # dpm_solver, unipc, deis, dpm_adaptive:
    sampling.order = placeholder(int)
    sampling.prediction = placeholder(str)  # x0 (DPM-Solver++), eps
    sampling.method = placeholder(str)  # dpm_solver: multistep, singlestep
    sampling.stochastic = placeholder(bool)  # dpm_solver: the reverse SDE
    sampling.variant = placeholder(str)  # unipc: bh2, bh1
    sampling.lower_order_final = placeholder(bool)  # dpm_solver, unipc
    # heun:
    sampling.stage = placeholder(float)  # 1 Heun, 0.5 midpoint, 2/3 Ralston
    sampling.s_churn = placeholder(float)  # fresh noise of the whole way, in EDM's measure
    sampling.churn_min = placeholder(float)  # levels sigma / alpha between which it churns
    sampling.churn_max = placeholder(float)
    sampling.churn_noise = placeholder(float)  # scale of the fresh noise
    # analytic:
    sampling.form = placeholder(str)  # ddpm, ddim
    sampling.trajectory = placeholder(str)  # grid, optimal
    sampling.last_noise = placeholder(float)  # bounds on the variance
    sampling.half_range = placeholder(float)
    # langevin:
    sampling.step_size = placeholder(float)  # in units of sigma^2
    # ode, sde, dpm_adaptive:
    sampling.solver = placeholder(str)  # ode: dopri5, tsit5, ...; sde: sra1, euler, ...
    sampling.variable = placeholder(str)  # ode: t, log_snr, angle
    sampling.rtol = placeholder(float)
    sampling.atol = placeholder(float)
    sampling.max_steps = placeholder(int)
    sampling.h_init = placeholder(float)  # dpm_adaptive: first step in lambda
    sampling.safety = placeholder(float)  # dpm_adaptive
    sampling.growth = placeholder(float)  # dpm_adaptive: of a step to the next, at most

    config.likelihood = likelihood = ConfigDict()
    likelihood.trace = "rademacher"  # rademacher, gaussian, exact
    likelihood.probes = 1
    likelihood.t_min = 1e-5
    likelihood.solver = "dopri5"  # dopri5, tsit5, dopri8, bosh3, heun, midpoint, ralston
    likelihood.rtol = 1e-5
    likelihood.atol = 1e-5
    likelihood.max_steps = 4096

    config.moments = moments = ConfigDict()  # --mode=moments, for the sampler analytic
    moments.images = 1000  # training images
    moments.times = 100  # noise levels; of a chain, all

    config.eval = evaluation = ConfigDict()
    evaluation.checkpoints = ()  # steps; empty for the latest
    evaluation.metrics = ("loss", "bits_per_dim", "frechet")
    evaluation.batch_size = 128  # images, over all devices
    evaluation.seed = 0  # of noise, probes, dequantization
    evaluation.loss_repeats = 10  # times and noises a test image
    evaluation.dequantizations = 5  # draws a test image
    evaluation.samples = 1500  # images for the Frechet distance
    evaluation.features = "pixels"  # features of the Frechet distance
    return config
